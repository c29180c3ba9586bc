"""Distributions for the eye: a table with bars, aligned. On a terminal it has colours, and gives way to fit in its width."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.generate import Candidate, Step

BAR = 20
"""Columns of the longest bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEADERS = ("rank", "token", "id", "", "probability", "logit", "cumulative", "drawn")
_RANK, _TOKEN, _ID, _BARS, _PROBABILITY, _LOGIT, _CUMULATIVE, _DRAWN = range(len(_HEADERS))
_LEFT = {_TOKEN, _BARS}
_LEAST = (_CUMULATIVE, _LOGIT, _RANK, _BARS, _ID)
"""What a narrow terminal does without, in this order."""
_GAP = "  "
DIM, CYAN, PLAIN = "\x1b[2m", "\x1b[36m", "\x1b[0m"


def visible(text: str, data: bytes) -> str:
    """A token's text with its spaces and control characters shown; bytes that are no whole characters in hexadecimal."""
    if not data:
        return "(nothing)"
    if "\ufffd" in text and "\ufffd".encode() not in data:
        return " ".join(f"<{byte:02x}>" for byte in data)
    return escape.name(text).replace(" ", "␣")


def table(candidates: Sequence[Candidate], color: bool, columns: int = 0) -> str:
    """Candidates, likeliest first, one a line under a header; those that the filters removed are dim.

    columns: of the terminal; 0: no limit."""
    rows, total = [list(_HEADERS)], 0.0
    for number, candidate in enumerate(candidates, 1):
        total += candidate.prob
        rows.append(
            [
                str(candidate.rank),
                visible(candidate.text, candidate.bytes),
                str(candidate.id),
                "",
                percent(candidate.prob),
                f"{candidate.logit:.3f}",
                percent(total) if candidate.rank == number else "",  # unknown behind a gap
                candidate.removed_by or percent(candidate.final_prob),
            ]
        )
    widths = [max(width(row[column]) for row in rows) for column in range(len(_HEADERS))]
    widths[_BARS] = BAR
    if columns:
        _fit(widths, columns)
    largest = max((candidate.prob for candidate in candidates), default=1.0)
    lines = []
    for row, shown in zip(rows, (None, *candidates), strict=True):
        if shown and largest > 0:
            row[_BARS] = bar(shown.prob / largest, widths[_BARS])
        cells = {column: align(cell, widths[column], column in _LEFT) for column, cell in enumerate(row) if widths[column]}
        dim = shown is None or shown.removed_by
        if color and not dim and _BARS in cells:
            cells[_BARS] = f"{CYAN}{cells[_BARS]}{PLAIN}"
        line = _GAP.join(cells.values()).rstrip()
        lines.append(f"{DIM}{line}{PLAIN}" if color and dim else line)
    return "\n".join(lines) + "\n"


def alternatives(step: Step) -> str:
    """A line of --probs: the token, its probability, and what else was likely there."""
    others = "  ".join(f"{visible(c.text, c.bytes)} {percent(c.prob)}" for c in step.top)
    token = visible(step.bytes.decode("utf-8", "replace"), step.bytes)
    return f"{step.position:>6}  {token:<16}{percent(math.exp(step.logprob)):>8}  | {others}"


def _fit(widths: list[int], columns: int) -> None:
    """Makes the table narrower until it fits: first the bars, then long tokens; then it leaves columns out (width 0)."""

    def excess() -> int:
        kept = [width for width in widths if width]
        return max(0, sum(kept) + len(_GAP) * (len(kept) - 1) - columns)

    def shrink(column: int, least: int) -> None:
        widths[column] -= max(0, min(excess(), widths[column] - least))

    shrink(_BARS, 4)
    shrink(_TOKEN, 12)
    for column in _LEAST:
        if excess():
            widths[column] = 0
    shrink(_TOKEN, len(_HEADERS[_TOKEN]))


def percent(value: float) -> str:
    """A probability; small ones keep two digits."""
    if value <= 0.0:
        return "0%"
    return f"{100 * value:.2f}%" if value >= 0.0001 else f"{100 * value:.1e}%"


def width(text: str) -> int:
    """Columns that text takes on a terminal: East Asian characters two, combining ones none."""
    return len(text) if text.isascii() else sum(map(_columns, text))


@functools.lru_cache(maxsize=4096)
def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def align(cell: str, columns: int, left: bool) -> str:
    """The cell in so many columns, cut off where it has more."""
    taken = width(cell)
    if taken > columns:
        while taken >= columns:
            cell = cell[:-1]
            taken = width(cell)
        cell, taken = cell + "…", taken + 1
    space = " " * (columns - taken)
    return cell + space if left else space + cell


def bar(share: float, columns: int = BAR) -> str:
    """A bar of up to so many columns in steps of an eighth; whatever is possible at all shows."""
    eighths = max(1, math.floor(share * columns * 8 + 0.5)) if share > 0 else 0
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
