"""A chat's input a line at a time: from a pipe or a file, and from terminals that can do no more.

A line is a message; one that ends with a backslash goes on in the next.
"""

from __future__ import annotations

import contextlib
import os
import sys

from llmcli.cli.console import Console
from llmcli.errors import InputError
from llmcli.text.input import LARGEST, decode

PROMPT, MORE = ">>> ", "... "


class Lines:
    """interactive: standard input is a terminal, so there is somebody to ask, and prompts to show (on standard error)."""

    keys = "A line that ends with a backslash goes on in the next. Ctrl-C stops an answer, Ctrl-D leaves."

    def __init__(self, console: Console, interactive: bool) -> None:
        self._console = console
        self._interactive = interactive

    def read(self, default: str = "") -> str | None:
        """The next message; None at the end. default: what an editor would offer. Raises InputError for what is no text."""
        parts: list[str] = []
        while (line := self._line(MORE if parts else PROMPT)) is not None:
            parts.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                break
        return "\n".join(parts) if parts else None

    def ask(self, question: str) -> bool:
        answer = self._line(f"{question} [y/N] ")
        return answer is not None and answer.strip().lower() in ("y", "yes")

    def _line(self, prompt: str) -> str | None:
        while True:
            try:
                return self._next(prompt)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._console.say("\nCtrl-D leaves")

    def _next(self, prompt: str) -> str | None:
        if self._interactive:
            with contextlib.suppress(OSError):
                os.write(2, prompt.encode())
        data = sys.stdin.buffer.readline(LARGEST + 1)
        if not data:
            if self._interactive:
                self._console.end_line()
            return None
        if len(data) > LARGEST:
            raise InputError("the line is too long", f"more than {LARGEST // 2**20} MiB of text", "Give a part of it")
        return decode(data, "the line").removesuffix("\n").removesuffix("\r")
