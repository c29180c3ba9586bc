r"""What a terminal would obey is shown instead: model text, names and error texts come from strangers.

Control characters (C0 but newline and tab, DEL, C1), directional overrides, line and paragraph separators and lone
surrogates come out as \x1b or \u202e, in visible characters. Other writing systems pass, right-to-left ones too.
"""

from __future__ import annotations

import re

_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_TEXT = re.compile(f"[{_OBEYED}]")
_NAME = re.compile(f"[{_OBEYED}\t\n]")
_SHORT = {"\n": r"\n", "\t": r"\t"}


def name(text: str) -> str:
    """One line of visible characters, for names and messages: newlines and tabs are shown as well."""
    return _NAME.sub(_show, text)


def visible(text: str) -> str:
    """A whole text that is safe to show."""
    return _TEXT.sub(_show, text)


class Escape:
    """The filter of a stream of text for a terminal. It keeps back a carriage return until it knows that no newline follows:
    the pair is a newline, alone it would let text overwrite the line."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that is safe to show."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return visible(text.removesuffix("\r").replace("\r\n", "\n"))

    def finish(self) -> str:
        """What was kept back."""
        held, self._held = self._held, ""
        return visible(held)


def _show(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
