"""Rows of words in columns."""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.text import escape


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of columns as wide as their widest word, what a terminal would obey shown. right: columns aligned to the right."""
    safe = [[escape.name(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    lines = []
    for row in safe:
        words = [word.rjust(width) if i in right else word.ljust(width) for i, (word, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(words).rstrip() + "\n")
    return "".join(lines)
