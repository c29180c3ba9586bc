"""What `llm diff` shows: tables for people, lines of JSON, a page."""

from __future__ import annotations

import functools
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any, Protocol

from llmcli.cli import bars
from llmcli.cli.console import Answer, is_terminal
from llmcli.cli.heat import Column, Rows
from llmcli.cli.lines import Lines
from llmcli.cli.render import SCHEMA, to_line
from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.cli.page import TextPage
    from llmcli.compare import Compared, Differences
    from llmcli.scoring import Scored
    from llmcli.text.tokenizer import Tokenizer

LAYOUT = (
    Column("position", 8, need=2),
    Column("token", 16, left=True),
    Column("KL", 9),
    Column("first's", 9, need=1),
    Column("second's", 9, need=1),
    Column("first's favourite", 24, left=True, need=4),
    Column("second's favourite", 24, left=True, need=4),
)
PLACES = (*LAYOUT[:5], Column("first's favourite", 18, True, 4), Column("second's favourite", 18, True, 4), Column("after", 30, True, 3))


class Writer(Protocol):
    def token(self, token: Compared, piece: str) -> None:
        """piece: the text that this token completes."""

    def end(self, rest: str, found: Differences, summary: dict[str, Any]) -> None:
        """rest: text that never became complete."""


class Names:
    """How tokens are called, and how many of the likeliest of each model are wanted."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer, self.top = tokenizer, top
        self.visible = functools.lru_cache(maxsize=None)(self._visible)
        self.record = functools.lru_cache(maxsize=None)(self._record)

    def _visible(self, number: int) -> str:
        return bars.visible(self._tokenizer.token_text(number), self._tokenizer.token_bytes(number))

    def _record(self, number: int) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(number)
        return {"id": number, "text": data.decode("utf-8", "replace"), "bytes": data.hex()}


class Tables:
    """The places of most disagreement and the totals; with `every`, a row for each token before them."""

    def __init__(self, answer: Answer, names: Names, every: bool, here: bool) -> None:
        columns = shutil.get_terminal_size().columns if here and is_terminal(sys.stdout) else 0
        self._lines, self._names, self._every = Lines(answer.write_styled), names, every
        self._rows, self._places = Rows(LAYOUT, columns), Rows(PLACES, columns)

    def token(self, token: Compared, piece: str) -> None:
        if self._every:
            if token.a.position == 0:
                self._lines.add(self._rows.header())
            self._lines.add(self._rows.row(self._cells(token, self._names.top)))

    def _cells(self, token: Compared, top: int) -> list[str]:
        numbers, favourites = ["", "", ""], ["", ""]
        if token.a.rank:
            numbers = [f"{token.kl:.3g}", *(bars.percent(math.exp(one.logprob)) for one in (token.a, token.b))]
            favourites = [self._favourites(one, top) for one in (token.a, token.b)]
        return [str(token.a.position), self._names.visible(token.a.id), *numbers, *favourites]

    def _favourites(self, token: Scored, top: int) -> str:
        return "  ".join(f"{self._names.visible(number)} {bars.percent(math.exp(value))}" for number, value in token.top[:top])

    def end(self, rest: str, found: Differences, summary: dict[str, Any]) -> None:
        if worst := found.worst:
            self._lines.add(("\n" if self._every else "") + "Most different distributions, and the token that came:\n")
            self._lines.add(self._places.header())
            for token, before in worst:
                self._lines.add(self._places.row([*self._cells(token, 1), "…" + escape.name(before[-28:])]))
            self._lines.add("\n")
        for line in totals(summary):
            self._lines.add(line + "\n")
        self._lines.flush()


class JsonLines:
    """A record a token, then the summary (docs/json.md)."""

    def __init__(self, answer: Answer, names: Names) -> None:
        self._lines, self._names = Lines(answer.write), names

    def token(self, token: Compared, piece: str) -> None:
        self._lines.add(to_line(self._record(token)))

    def _record(self, token: Compared) -> dict[str, Any]:
        known = token.a.rank > 0
        numbers = {"kl": token.kl, "same_top": token.same_top if known else None}
        both = {name: self._numbers(one) for name, one in (("a", token.a), ("b", token.b))}
        return {"position": token.a.position, **self._names.record(token.a.id), **numbers, **both}

    def _numbers(self, token: Scored) -> dict[str, Any]:
        top = [{**self._names.record(number), "logprob": value} for number, value in token.top[: self._names.top]]
        return {"logprob": token.logprob, "rank": token.rank or None, "entropy_bits": token.entropy_bits, "top": top}

    def end(self, rest: str, found: Differences, summary: dict[str, Any]) -> None:
        worst = [{"before": before, **self._record(token)} for token, before in found.worst]
        self._lines.add(to_line({"type": "summary", "schema": SCHEMA, **summary, "worst": worst}))
        self._lines.flush()


class PageWriter:
    """A page for a browser."""

    def __init__(self, page: TextPage) -> None:
        self._page = page
        self.token = page.compared

    def end(self, rest: str, found: Differences, summary: dict[str, Any]) -> None:
        self._page.end(rest, totals(summary))


def totals(summary: dict[str, Any]) -> list[str]:
    """The last lines for people."""
    first, second = summary["models"]
    if not summary["compared_tokens"]:
        return [f"1 token, which follows nothing: nothing is compared, {first} and {second}"]
    (low, high), (least, most) = summary["kl_interval"], summary["same_top_interval"]
    known = low == low
    kl = f"  (95%: {low:.4g} to {high:.4g})" if known else ""
    same = f"  (95%: {100 * least:.2f}% to {100 * most:.2f}%)" if known else "  (too short for intervals)"
    return [
        f"KL divergence   {summary['kl']:.4g} nats a token{kl}, of {second} from {first}",
        f"                median {summary['kl_median']:.3g}, 99.9% below {summary['kl_999']:.3g}, largest {summary['kl_largest']:.3g}",
        f"same favourite  {100 * summary['same_top']:.2f}%{same}",
        f"perplexity      {summary['perplexity'][0]:.5g} and {summary['perplexity'][1]:.5g}",
        f"{summary['compared_tokens']:,} tokens compared in windows of {summary['window']:,}, stride {summary['stride']:,}",
    ]
