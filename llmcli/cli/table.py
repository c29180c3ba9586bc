"""Rows of words in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from llmcli.text import escape

INDENT = "  "


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), columns: int = 0) -> str:
    """Lines of columns as wide as their widest word, what a terminal would obey shown. right: columns aligned to the right; columns: of
    the terminal, 0: no limit. Where lines would be longer, the last word of each row stands below the others."""
    safe = [[escape.name(word) for word in row] for row in rows]
    if 0 < columns < sum(max(map(len, column)) + 2 for column in zip(*safe, strict=True)) - 2:
        below = [textwrap.fill(row[-1], columns, initial_indent=INDENT, subsequent_indent=INDENT) for row in safe]
        return "".join(f"{line}\n{text}\n" for line, text in zip(_lines([row[:-1] for row in safe], right), below, strict=True))
    return "".join(f"{line}\n" for line in _lines(safe, right))


def _lines(safe: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    lines = []
    for row in safe:
        words = [word.rjust(width) if i in right else word.ljust(width) for i, (word, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(words).rstrip())
    return lines
