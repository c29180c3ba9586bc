"""Distributions for the eye: a table with bars, aligned, the same on a terminal and in a pipe but for the colours."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.generate import Candidate

BAR = 20
"""Columns of the longest bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEADERS = ("rank", "token", "id", "", "probability", "logit", "cumulative", "drawn", "removed by")
_RIGHT = {0, 2, 4, 5, 6, 7}
_DIM, _CYAN, _PLAIN = "\x1b[2m", "\x1b[36m", "\x1b[0m"


def visible(text: str, data: bytes) -> str:
    """A token's text with its spaces and control characters shown; bytes that are no whole characters in hexadecimal."""
    if not data:
        return "(nothing)"
    if "\ufffd" in text and "\ufffd".encode() not in data:
        return " ".join(f"<{byte:02x}>" for byte in data)
    return escape.name(text).replace(" ", "␣")


def table(candidates: Sequence[Candidate], color: bool) -> str:
    """Candidates, likeliest first, one a line under a header; those that the filters removed are dim."""
    largest = max((candidate.prob for candidate in candidates), default=1.0)
    rows, total = [list(_HEADERS)], 0.0
    for candidate in candidates:
        total += candidate.prob
        rows.append(
            [
                str(candidate.rank),
                visible(candidate.text, candidate.bytes),
                str(candidate.id),
                _bar(candidate.prob / largest if largest > 0 else 0.0),
                percent(candidate.prob),
                f"{candidate.logit:.3f}",
                percent(total),
                "-" if candidate.removed_by else percent(candidate.final_prob),
                candidate.removed_by or "",
            ]
        )
    widths = [max(width(row[column]) for row in rows) for column in range(len(_HEADERS))]
    widths[3] = BAR
    lines = []
    for number, row in enumerate(rows):
        cells = [_align(cell, widths[column], column in _RIGHT) for column, cell in enumerate(row)]
        dim = number == 0 or row[-1]
        if color:
            cells[3] = f"{_CYAN}{cells[3]}{_PLAIN}" if not dim else cells[3]
        line = "  ".join(cells).rstrip()
        lines.append(f"{_DIM}{line}{_PLAIN}" if color and dim else line)
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    """A probability; small ones keep two digits."""
    if value <= 0.0:
        return "0%"
    return f"{100 * value:.2f}%" if value >= 0.0001 else f"{100 * value:.1e}%"


def width(text: str) -> int:
    """Columns that text takes on a terminal: East Asian characters two, combining ones none."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _align(cell: str, columns: int, right: bool) -> str:
    space = " " * (columns - width(cell))
    return space + cell if right else cell + space


def _bar(share: float) -> str:
    """A bar of up to BAR columns in steps of an eighth; whatever is possible at all shows."""
    eighths = max(1, math.floor(share * BAR * 8 + 0.5)) if share > 0 else 0
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
