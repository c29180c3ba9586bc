"""Lines on their way out, some at a time: a system call for each would take as long as making it."""

from __future__ import annotations

from collections.abc import Callable


class Lines:
    """write: what takes them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._held: list[str] = []

    def add(self, line: str) -> None:
        self._held.append(line)
        if len(self._held) == 64:
            self.flush()

    def flush(self) -> None:
        self._write("".join(self._held))
        self._held.clear()
