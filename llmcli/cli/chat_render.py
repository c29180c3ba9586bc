"""An answer as Markdown, a block at a time.

A block is shown when it is whole, so nothing that stands on the screen is ever written again. Markdown has other names for
characters (&#x202e;), so what is drawn is filtered once more.
"""

from __future__ import annotations

import io
import re
import shutil
from typing import TYPE_CHECKING

from llmcli.cli.console import Answer
from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.generate import Step
    from llmcli.text.thinking import Piece

_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)


class Markdown:
    """A writer like those of render.py. Thoughts are left out. color: whether colours and bold letters may be used."""

    def __init__(self, answer: Answer, color: bool) -> None:
        self._answer = answer
        self._color = color
        self._escape = escape.Escape()
        self._held = ""
        self._first = True

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        self._held += self._escape.feed("".join(piece.text for piece in pieces if piece.part == "answer"))
        cut = _whole(self._held)
        self._draw(self._held[:cut])
        self._held = self._held[cut:]

    def stop(self) -> None:
        self._draw(self._held + self._escape.finish())
        self._held = ""

    def _draw(self, text: str) -> None:
        if not text.strip():
            return
        from rich.console import Console
        from rich.markdown import Markdown as Drawn

        width = shutil.get_terminal_size().columns
        drawn = io.StringIO()
        page = Console(file=drawn, force_terminal=self._color, no_color=not self._color, width=width, legacy_windows=False)
        # Links as text: a terminal's own links may lead elsewhere than they say.
        page.print(Drawn(text, hyperlinks=False))
        self._answer.write_styled(("" if self._first else "\n") + _filtered(drawn.getvalue()))
        self._first = False


def _filtered(drawn: str) -> str:
    """The page without what a terminal would obey but its own colours. The text in it was filtered, so that no colour is the text's."""
    parts = _COLOR.split(drawn)
    parts[::2] = map(escape.visible, parts[::2])
    return "".join(parts)


def _whole(text: str) -> int:
    """Length of the part of text that is whole blocks: up to the last empty line outside a fence."""
    end = text.rfind("\n\n")
    while end >= 0:
        if len(_FENCE.findall(text[:end])) % 2 == 0:
            return end + 2
        end = text.rfind("\n\n", 0, end)
    return 0
