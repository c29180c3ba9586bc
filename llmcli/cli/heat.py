"""A text with a background of colour for each token, and rows of a table that are printed one by one, for texts of any length.

What a terminal would obey is shown (text/escape.py). A character that is split over tokens appears with the token that completes it.
A colour ends before a newline: some terminals would fill the rest of the line with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.cli.bars import PLAIN, align
from llmcli.text.escape import Escape

LEVELS = (1.0, 3.0, 6.0, 10.0)
"""Bits of surprise at which the next colour begins: probabilities of 1/2, 1/8, 1/64 and 1/1024."""
HEAT = ("", *(f"\x1b[38;5;16;48;5;{background}m" for background in (229, 222, 215, 203)))
"""Black on yellow to red, of the 256 colours that every terminal knows; readable on dark and light ones."""
TURNS = tuple(f"\x1b[38;5;16;48;5;{background}m" for background in (153, 223, 157, 225))
"""For neighbours that are only to be told apart."""


def surprise(bits: float) -> str:
    """The colour of so many bits; none for NaN."""
    return HEAT[sum(bits >= level for level in LEVELS)]


def legend() -> str:
    """A line that explains `surprise`."""
    names = [f"<{LEVELS[0]:g}", *(f"{low:g}-{high:g}" for low, high in zip(LEVELS, LEVELS[1:], strict=False)), f">{LEVELS[-1]:g}"]
    return "bits of surprise: " + " ".join(f"{color} {name} {PLAIN}" for color, name in zip(HEAT, names, strict=True)) + "\n"


class Painter:
    """Pieces of a text in, what a terminal shows of them out."""

    def __init__(self) -> None:
        self._escape = Escape()

    def paint(self, text: str, color: str) -> str:
        """The next piece, on this colour."""
        return _on(self._escape.feed(text), color)

    def finish(self) -> str:
        """What the filter kept back, and the end of the last line."""
        return _on(self._escape.finish(), "") + "\n"


def _on(text: str, color: str) -> str:
    return "\n".join(f"{color}{line}{PLAIN}" if color and line else line for line in text.split("\n"))


@dataclass(frozen=True)
class Column:
    name: str
    width: int
    left: bool = False
    need: int = 0
    """A narrow terminal does without those with the highest number first; 0: never."""


class Rows:
    """A table whose columns' widths are known before its rows. columns: of the terminal; 0: no limit."""

    def __init__(self, layout: Sequence[Column], columns: int = 0) -> None:
        kept = list(layout)
        while columns and sum(column.width + 2 for column in kept) - 2 > columns and max(column.need for column in kept):
            kept.remove(max(kept, key=lambda column: column.need))
        self._kept = [(number, column) for number, column in enumerate(layout) if column in kept]

    def header(self) -> str:
        """The line of names."""
        names = {number: column.name for number, column in self._kept}
        return self.row([names.get(number, "") for number in range(max(names) + 1)])

    def row(self, cells: Sequence[str]) -> str:
        """A line; what is too long ends with an ellipsis."""
        return "  ".join(align(cells[number], column.width, column.left) for number, column in self._kept).rstrip() + "\n"
