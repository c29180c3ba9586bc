"""Stop strings in a stream of text, whatever tokens they are split over.

Text goes out at once, except an end that may still become a stop string. The result depends on the characters alone, not on
how they were cut: the stop string that is complete first wins, of two that end together the longer.
"""

from __future__ import annotations

from collections.abc import Iterable


class Stops:
    """strings: what ends the text; empty ones are ignored."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string has been found). After a find, the rest is gone."""
        self._held += text
        ends = [(at + len(s), at) for s in self._strings if (at := self._held.find(s)) >= 0]
        if ends:
            return self._release(min(ends)[1], keep=False), True
        return self._release(len(self._held) - self._open()), False

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        return self._release(len(self._held))

    def _release(self, count: int, keep: bool = True) -> str:
        shown = self._held[:count]
        self._held = self._held[count:] if keep else ""
        return shown

    def _open(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(string) for string in self._strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(string.startswith(tail) for string in self._strings):
                return length
        return 0
