"""Shares between 0 and 1 as colours and signs, and a table of them: how every token of a text spreads over those before it."""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.cli.bars import DIM, PLAIN, align, width
from llmcli.cli.heat import HEAT

LEVELS = (0.02, 0.1, 0.25, 0.5)
"""Shares at which the next colour begins."""
SIGNS = ("·", "░", "▒", "▓", "█")
"""The same without colours."""
NAME = 12
"""Columns of a token's name."""
NUMBERS, SQUARES, NARROW = 4, 2, 1
"""Columns of a share: as a number, as a square, as half of one."""


def level(share: float) -> int:
    return sum(share >= least for least in LEVELS)


def color(share: float) -> str:
    """The colour of a share, as an escape sequence."""
    return HEAT[level(share)]


def legend(colored: bool, numbers: bool = False) -> str:
    """A line that explains the colours, or the signs, or numbers without either."""
    if numbers and not colored:
        return "shares in %\n"
    bounds = [f"{100 * least:g}" for least in LEVELS]
    names = [f"<{bounds[0]}", *(f"{low}-{high}" for low, high in zip(bounds, bounds[1:], strict=False)), f">{bounds[-1]}"]
    shown = (f"{one} {name} {PLAIN}" if colored else f"{sign} {name}" for one, sign, name in zip(HEAT, SIGNS, names, strict=True))
    return "shares in %: " + " ".join(shown) + "\n"


def grid(names: Sequence[str], weights: Sequence[Sequence[float]], colored: bool, columns: int = 0) -> str:
    """A row a token: its position and name, then its share for each token up to itself, under that one's position.

    weights: row i has the shares of tokens 0 to i. columns: of the terminal; 0: no limit. Where numbers do not fit, squares are
    shown; where these do not, only the last tokens have a row and a column, and the column `before` sums up the others'. The last
    line is the legend.
    """
    count, place = len(names), len(str(len(names) - 1))
    named = min(NAME, max(map(width, names)))
    room = columns - place - 1 - named - 1
    size = next((size for size in (NUMBERS, SQUARES, NARROW) if not columns or count * size <= room), NARROW)
    first = 0 if not columns or count * size <= room else count - max(1, room - NUMBERS - 3)
    before = NUMBERS + 3 if first else 0
    turn = {NUMBERS: 1000, SQUARES: 100, NARROW: 10}[size]  # as many digits as there is room for
    heads = "".join(f"{position % turn:>{size}}" for position in range(first, count))
    head = " " * (place + 1 + named) + (" before" if first else "") + " " + heads
    lines = [f"{DIM}{head}{PLAIN}" if colored else head]
    for row in range(first, count):
        cells = [_cell(share, size, colored) for share in weights[row][first:]]
        rest = _cell(sum(weights[row][:first]), before, colored, NUMBERS) if first else ""
        lines.append(f"{row:>{place}} {align(names[row], named, True)}{rest} {''.join(cells)}")
    return "\n".join(lines) + "\n" + legend(colored, size == NUMBERS)


def _cell(share: float, size: int, colored: bool, kind: int = 0) -> str:
    text = f"{100 * share:>{size}.0f}" if (kind or size) >= NUMBERS else " " * size if colored else SIGNS[level(share)] * size
    shade = color(share) if colored else ""
    return f"{shade}{text}{PLAIN}" if shade else text
