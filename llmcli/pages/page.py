"""A text as a page: every token on a colour of its own, with numbers and alternatives where the pointer or the keyboard is.

One file without network or framework: page.css and page.js go into it whole, and its policy allows these two and nothing else. Text of
models is hostile, so it enters only as escaped HTML and as JSON that cannot end its element, which page.js shows as text. The
numbers stand between the tokens, a block for every 256 of them, and are read when one is looked at: long pages open quickly, and
writing one takes little memory. It knows no model: callers say what is measured and in which words.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmcli.pages import document
from llmcli.text import escape

BLOCK = 256
"""Tokens whose numbers stand together; page.js is told."""


class Scale(NamedTuple):
    """What the colours mean."""

    name: str
    """With its unit."""
    levels: tuple[float, ...]
    """Values at which the next of the colours h1, h2, ... begins."""


SURPRISE = Scale("bits of surprise", (1, 2, 3, 4, 6, 8, 10, 13))
DIVERGENCE = Scale("KL divergence, nats", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3))


class Name(NamedTuple):
    """A token as it is called where it stands alone."""

    id: int
    text: str
    """With its spaces and control characters shown."""


class Choice(NamedTuple):
    """A row of a list of alternatives."""

    token: Name
    prob: float
    note: str = ""


class Page:
    """Writes a page, piece by piece. lists: headings of each token's lists of alternatives; facts: names of its numbers."""

    def __init__(self, write: Callable[[str], None], title: str, scale: Scale, facts: Sequence[str], lists: Sequence[str]) -> None:
        self._write, self._scale = write, scale
        self._terms = {"facts": list(facts), "lists": [escape.name(name) for name in lists], "block": BLOCK}
        self._names: dict[Name, int] = {}
        self._parts: list[str] = []
        self._records: list[Any] = []
        style, script = document.part("page.css"), document.part("page.js")
        self._script = script
        self._write(
            f"{document.opening(title, style, script)}<header><h1><bdi>{document.heading(title)}</bdi></h1>\n"
            f"<p>Point at a token, or go through the text with Tab and the arrow keys: what was likely there. "
            f"<kbd>n</kbd> and <kbd>p</kbd>: the next and the previous strong colour.</p></header>\n<main>"
        )

    def plain(self, text: str) -> None:
        """Text of which nothing is known."""
        self._parts.append(f'<span class="plain">{_text(text)}</span>')

    def token(
        self, name: Name, piece: str, value: float, facts: Sequence[str], lists: Sequence[Sequence[Choice]], control: bool = False
    ) -> None:
        """The next token. piece: text that it completes; value: on the scale, NaN without a colour; control: no part of the text."""
        level = sum(value >= bound for bound in self._scale.levels)
        kind = " control" if control else "" if piece else " part"
        self._parts.append(f'<span class="h{level}{kind}">{_text(name.text if control else piece)}</span>')
        choices = [[[self._number(choice.token), float(f"{choice.prob:.5g}"), choice.note] for choice in rows] for rows in lists]
        self._records.append([self._number(name), list(facts), choices])
        if len(self._records) == BLOCK:
            self._flush()

    def _number(self, name: Name) -> int:
        return self._names.setdefault(name, len(self._names))

    def _flush(self) -> None:
        if self._records:
            self._parts.append(document.data("numbers", self._records))
        self._write("".join(self._parts))
        self._parts.clear()
        self._records.clear()

    def end(self, rest: str, totals: Sequence[str]) -> None:
        """rest: text that never became complete; totals: lines about the whole text."""
        if rest:
            self.plain(rest)
        self._flush()
        levels = self._scale.levels
        names = [f"<{levels[0]:g}", *(f"{low:g}" for low in levels)]
        legend = " ".join(f'<span class="h{number}">{html.escape(name)}</span>' for number, name in enumerate(names))
        lines = "".join(f"<p>{html.escape(escape.name(line))}</p>" for line in totals)
        self._write(
            f'</main>\n<footer><p class="legend">{html.escape(self._scale.name)}, from: {legend}</p>{lines}</footer>\n'
            f'<aside role="status" hidden></aside>\n{document.data("names", [list(name) for name in self._names])}\n'
            f"{document.data('terms', self._terms)}\n"
            f"<script>{self._script}</script>\n</body>\n</html>\n"
        )


def _text(text: str) -> str:
    """As HTML; what would be obeyed is shown, a carriage return without its newline too, and newlines are marked."""
    shown = escape.Escape()
    return html.escape(shown.feed(text) + shown.finish(), quote=False).replace("\n", "<u></u>\n")
