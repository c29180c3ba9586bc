"""From tokens to tokens: the loop of step, distribution, filters, draw, with the text as it becomes complete.

It yields steps and never prints. One prompt, one sequence; the same steps whether they are streamed or collected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from llmcli.engine import Engine
from llmcli.errors import UsageError
from llmcli.past import Past
from llmcli.sampling import filters
from llmcli.sampling.distribution import Distribution
from llmcli.sampling.pick import pick
from llmcli.sampling.settings import Settings, from_generation_config
from llmcli.text.stops import Stops
from llmcli.text.tokenizer import Stream, Tokenizer

__all__ = ["Candidate", "Continuation", "NextTokens", "Settings", "Step", "generate", "next_tokens", "settings_for"]


@dataclass(frozen=True)
class Candidate:
    """One token of a distribution. Logarithms are natural; `prob` and `logprob` are the model's own, before filters."""

    rank: int
    """1: the likeliest."""
    id: int
    text: str
    """Its bytes as UTF-8, broken characters as U+FFFD."""
    bytes: bytes
    logit: float
    logprob: float
    prob: float
    final_prob: float
    """Probability after penalties, filters and temperature: what the draw used."""
    removed_by: str | None
    """The filter that removed it: top_k, top_p, min_p, temperature, logit_bias."""


@dataclass(frozen=True)
class Step:
    """One generated token, or the text left over at the end (id None)."""

    id: int | None
    text: str
    """Text that became complete with this token: '' inside a character or a possible stop string."""
    bytes: bytes = b""
    position: int = -1
    """Position of the token in its sequence, the prompt included."""
    logprob: float = math.nan
    rank: int = 0
    top: list[Candidate] = field(default_factory=list)
    finish: str | None = None
    """Why the text ends with this step: 'stop' (a stop string), 'eos', 'length'."""


@dataclass(frozen=True)
class NextTokens:
    """The distribution of the token after a text."""

    candidates: list[Candidate]
    entropy_bits: float


def settings_for(engine: Engine, overrides: dict[str, object]) -> Settings:
    """The defaults, then the model's generation_config.json, then the overrides that are not None. Raises UsageError for what is out of
    range, and for the bias of a token that the model does not have."""
    settings = from_generation_config(engine.generation_config).changed(overrides)
    largest = max(settings.logit_bias, default=0)
    if largest >= engine.plan.vocab:
        raise UsageError("logit bias", f"the model has no token {largest:,}; its ids end at {engine.plan.vocab - 1:,}", "Change it")
    return settings


def generate(
    engine: Engine, ids: Sequence[int], settings: Settings, probs: int = 0, past: Past | None = None, shown: Set[int] = frozenset()
) -> Iterator[Step]:
    """Continues the tokens `ids`; probs: how many candidates each step lists; past: what may have computed some of them, and
    holds them and the answer afterwards; shown: control tokens whose names are part of the text.

    Raises ContextOverflow when the prompt does not fit, InputError when it is empty or has an unknown token, NumericalError on NaN.
    """
    if settings.max_tokens == 0:
        return
    if past is not None:
        yield from _steps(engine, past, list(ids), settings, probs, shown)
        return
    with Past(engine) as own:
        yield from _steps(engine, own, list(ids), settings, probs, shown)


def _steps(engine: Engine, past: Past, ids: list[int], settings: Settings, probs: int, shown: Set[int]) -> Iterator[Step]:
    text = Continuation(engine, ids, settings, probs, shown)
    step = text.draw(past.read(ids))
    while step.finish is None:
        yield step
        step = text.draw(past.append(text.ids[-1:]))
    yield step


class Continuation:
    """A text that grows: from each distribution a token, and the text that it completes. What computes is elsewhere, so that several
    of them may share a step."""

    def __init__(self, engine: Engine, ids: Sequence[int], settings: Settings, probs: int = 0, shown: Set[int] = frozenset()) -> None:
        """As for `generate`; ids: the prompt, which stays the caller's."""
        self.ids = list(ids)
        """The prompt's tokens, and those drawn but the last one of all: what the next step is computed from."""
        self._engine, self._settings, self._probs, self._prompt = engine, settings, probs, len(ids)
        self._stream, self._stops = Stream(engine.tokenizer, ids, shown), Stops(settings.stop)

    def draw(self, distribution: Distribution) -> Step:
        """The step that the distribution after `ids` gives. Once one has a `finish`, the text has ended."""
        engine, settings, position = self._engine, self._settings, len(self.ids)
        filtered = filters.apply(distribution, settings, self.ids)
        token = pick(filtered, settings.seed, position)
        finish = _finish(engine, settings, token, position + 1 - self._prompt, position + 1)
        text, stopped = ("", False) if token in engine.end_ids else self._stops.feed(self._stream.feed(token))
        if stopped:
            finish = "stop"
        elif finish is not None:
            rest, stopped = self._stops.feed(self._stream.finish())
            text += rest if stopped else rest + self._stops.finish()
            finish = "stop" if stopped else finish
        if finish is None:
            self.ids.append(token)
        data = engine.tokenizer.token_bytes(token)
        top = candidates(engine.tokenizer, distribution, filtered, self._probs)
        return Step(token, text, data, position, distribution.logprob(token), distribution.rank(token), top, finish)


def _finish(engine: Engine, settings: Settings, token: int, made: int, used: int) -> str | None:
    if token in engine.end_ids:
        return "eos"
    if used > engine.context or (settings.max_tokens is not None and made >= settings.max_tokens):
        return "length"
    return None


def next_tokens(
    engine: Engine, ids: Sequence[int], settings: Settings, count: int, also: Sequence[int] = (), past: Past | None = None
) -> NextTokens:
    """The `count` likeliest next tokens after `ids`, with what the filters of `settings` make of them, and the tokens `also`, however
    unlikely. past: as for `generate`.

    Raises as `generate` does.
    """
    if past is None:
        with Past(engine) as own:
            return next_tokens(engine, ids, settings, count, also, own)
    distribution = past.read(ids)
    filtered = filters.apply(distribution, settings, list(ids))
    found = candidates(engine.tokenizer, distribution, filtered, count, also)
    return NextTokens(found, distribution.entropy_bits)


def candidates(
    tokenizer: Tokenizer, distribution: Distribution, filtered: filters.Filtered, count: int, also: Sequence[int] = ()
) -> list[Candidate]:
    """The `count` likeliest tokens, then those of `also` that are not among them."""
    best = distribution.best(count).tolist()
    ranked = list(enumerate(best, 1)) + [(distribution.rank(token), token) for token in dict.fromkeys(also) if token not in best]
    found = []
    for rank, token in ranked:
        data = tokenizer.token_bytes(token)
        logprob = distribution.logprob(token)
        final, removed = filtered.of(token)
        text = data.decode("utf-8", "replace")
        found.append(Candidate(rank, token, text, data, float(distribution.logits[token]), logprob, math.exp(logprob), final, removed))
    return found
