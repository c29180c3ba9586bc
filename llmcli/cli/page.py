"""Records of tokens, from `llm score`, `llm run` and `llm diff`, in the words of a page (`pages/page.py`)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.cli import bars
from llmcli.cli.console import open_answer
from llmcli.pages.page import DIVERGENCE, SURPRISE, Choice, Name, Page, Scale
from llmcli.text.tokenizer import Stream

if TYPE_CHECKING:
    from llmcli.compare import Compared
    from llmcli.generate import Step
    from llmcli.scoring import Scored
    from llmcli.text.thinking import Piece
    from llmcli.text.tokenizer import Tokenizer

TOP = 5
"""Alternatives of a token that a page shows where nobody says how many."""

SCORE = (SURPRISE, ("probability", "surprise", "rank", "entropy", "position"), ("likeliest here",))
RUN = (SURPRISE, ("probability", "surprise", "rank", "position"), ("likeliest here, and what the draw made of it",))


class TextPage:
    """A page, fed with a command's records."""

    def __init__(self, page: Page, tokenizer: Tokenizer) -> None:
        self._page, self._tokenizer = page, tokenizer
        self._name = functools.lru_cache(maxsize=None)(self._find_name)
        self.plain, self.end = page.plain, page.end

    def scored(self, token: Scored, piece: str) -> None:
        """A token of a given text; piece: the text that it completes."""
        facts = ["", "", "", "", str(token.position)]
        if token.rank:
            facts[:4] = [*_surprise(token), str(token.rank), f"{token.entropy_bits:.2f} bits"]
        self._add(token.id, piece, token.bits, facts, [self._top(token)])

    def drawn(self, step: Step, piece: str) -> None:
        """A generated token."""
        assert step.id is not None
        prob, bits = math.exp(step.logprob), max(0.0, -step.logprob / math.log(2))
        rows = [Choice(self._name(c.id), c.prob, c.removed_by or bars.percent(c.final_prob)) for c in step.top]
        facts = (bars.percent(prob), f"{bits:.2f} bits", str(step.rank), str(step.position))
        self._add(step.id, piece, bits, facts, [rows])

    def compared(self, token: Compared, piece: str) -> None:
        """A token of a text that two models read."""
        facts = ["", "", "", "", "", str(token.a.position)]
        if token.a.rank:
            facts[:5] = [f"{token.kl:.4g} nats", *_surprise(token.a), *_surprise(token.b)]
        self._add(token.a.id, piece, token.kl, facts, [self._top(token.a), self._top(token.b)])

    def _add(self, number: int, piece: str, value: float, facts: Sequence[str], lists: Sequence[Sequence[Choice]]) -> None:
        self._page.token(self._name(number), piece, value, facts, lists, number in self._tokenizer.control)

    def _top(self, token: Scored) -> list[Choice]:
        return [Choice(self._name(number), math.exp(value)) for number, value in token.top]

    def _find_name(self, number: int) -> Name:
        return Name(number, bars.visible(self._tokenizer.token_text(number), self._tokenizer.token_bytes(number)))


def _surprise(token: Scored) -> tuple[str, str]:
    return bars.percent(math.exp(token.logprob)), f"{token.bits:.2f} bits"


class RunWriter:
    """The page of a generation: the prompt, about which nothing is known, and every token drawn, those of a stop string too."""

    def __init__(self, page: TextPage, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._page, self._stream, self._count, self._sum = page, Stream(tokenizer), 0, 0.0
        page.plain("".join(map(self._stream.feed, prompt)))

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        if step.id is not None:
            self._count += 1
            self._sum += step.logprob
            self._page.drawn(step, self._stream.feed(step.id))

    def end(self, summary: dict[str, Any]) -> None:
        perplexity = math.exp(-self._sum / self._count) if self._count else math.nan
        drawn = f"{self._count:,} tokens drawn, perplexity {perplexity:.4g}, {summary['model']}"
        self._page.end(self._stream.finish(), [drawn])

    def stop(self) -> None:
        """Half a page never appears."""


Words = tuple[Scale, Sequence[str], Sequence[str]]
"""(scale, names of the facts, headings of the lists)."""


def of_two(a: str, b: str) -> Words:
    """A page's words for two models of these names."""
    facts = ("KL divergence", "probability", "surprise", "to the other", "surprise", "position")
    return DIVERGENCE, facts, (f"likeliest to {a}", f"likeliest to {b}")


@contextlib.contextmanager
def opened(path: Path, title: str, words: Words, tokenizer: Tokenizer) -> Iterator[TextPage]:
    """A page that appears at `path` whole or not at all. Raises DiskError."""
    with open_answer(path) as answer:
        yield TextPage(Page(answer.write, title, *words), tokenizer)
