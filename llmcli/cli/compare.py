"""Tables of whole answers, and of the same tokens or answers after several texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli.cli import bars
from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.choices import Choice

WIDEST = 40
"""Columns of the widest answer."""


def choice_table(choices: Sequence[Choice], color: bool, columns: int = 0) -> str:
    """Answers, likeliest first, with a bar of their share. columns: of the terminal; 0: no limit."""
    header = ["choice", "", "share", "log-probability", "per token", "tokens"]
    rows = []
    for choice in sorted(choices, key=lambda choice: -choice.prob):
        name = escape.name(choice.text)
        per_token = bars.percent(choice.prob_per_token)
        rows.append([name, bars.bar(choice.prob), bars.percent(choice.prob), f"{choice.logprob:.3f}", per_token, str(len(choice.ids))])
    widths = [min(WIDEST, max(map(bars.width, cells))) for cells in zip(header, *rows, strict=True)]
    widths[1] = bars.BAR
    if columns:
        widths[0] = max(len(header[0]), min(widths[0], columns - sum(widths[1:]) - 2 * len(widths) + 2))
    lines = ["  ".join(bars.align(*cell) for cell in zip(row, widths, (True, True, *[False] * 4), strict=True)) for row in (header, *rows)]
    return "".join(f"{bars.DIM}{line.rstrip()}{bars.PLAIN}\n" if color and not i else f"{line.rstrip()}\n" for i, line in enumerate(lines))


def comparison(what: str, texts: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], columns: int = 0) -> str:
    """(name, its probability after each text), those that are likeliest anywhere first; the texts are numbered above."""
    legend = [f"{number}: {escape.name(text)}" for number, text in enumerate(texts, 1)]
    if columns:
        legend = [bars.align(line, columns, True).rstrip() for line in legend]
    names = min(WIDEST, max(bars.width(name) for name in (what, *(name for name, _ in rows))))
    lines = [_line(what, names, [str(number) for number in range(1, len(texts) + 1)])]
    for name, probs in sorted(rows, key=lambda row: -max(row[1])):
        lines.append(_line(name, names, [bars.percent(prob) for prob in probs]))
    return "\n".join([*legend, *lines]) + "\n"


def _line(name: str, width: int, cells: Sequence[str]) -> str:
    return "  ".join([bars.align(name, width, True), *(bars.align(cell, 9, False) for cell in cells)])
