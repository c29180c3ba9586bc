"""Somebody who sits at a terminal: types, waits for what appears, looks at the screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pexpect
import pyte

from terminal import environment

SENT = b"\x1b[?2004l"
"""What an editor writes when it is done: pasting is as it was."""


class Sitting:
    """A command on a terminal of so many columns and rows, and the screen that it draws."""

    def __init__(self, words: Sequence[str], extra: Mapping[str, str] = {}, columns: int = 60, rows: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        """Everything that the terminal got."""
        self.process = pexpect.spawn(sys.executable, list(words), env=environment(extra), dimensions=(rows, columns))

    def type(self, text: str) -> None:
        """Keys; Enter is \\r."""
        self.process.send(text.encode())

    def enter(self, text: str) -> None:
        """A message or a command, and all that comes of it, up to the next prompt."""
        sent = self.raw.count(SENT)
        self.type(f"{text}\r")
        self._until(lambda: self.look() and self.raw.count(SENT) > sent, "the message", 30)
        self.wait_prompt()

    def look(self) -> list[str]:
        """The screen's lines, without spaces at their ends and empty lines at the bottom."""
        self._take(0.05)
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def wait(self, text: str, seconds: float = 30) -> None:
        """Until the text is on the screen."""
        self._until(lambda: text in "\n".join(self.look()), text, seconds)

    def wait_prompt(self, seconds: float = 60) -> None:
        """Until the last line is an empty prompt."""
        self._until(lambda: self.look()[-1] == ">>>", "the prompt", seconds)

    def wait_answer(self, seconds: float = 60) -> None:
        """Until an answer has begun."""
        self._until(lambda: not self.look()[-1].startswith((">>>", "...")), "an answer", seconds)

    def wait_end(self, seconds: float = 30) -> int:
        """Until the command is over; its exit code."""
        self._until(lambda: not self.look() or not self.process.isalive(), "the end", seconds)
        return int(self.process.exitstatus if self.process.exitstatus is not None else -self.process.signalstatus)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)
        self._take(0.3)

    def computing(self) -> float:
        """Seconds that the process has computed for, all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def _until(self, happened: object, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{what} did not come: {self.look()}"

    def _take(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                data = self.process.read_nonblocking(65536, timeout=left)
            except pexpect.TIMEOUT:
                return
            except pexpect.EOF:
                self.process.close()
                return
            self.raw += data
            self._stream.feed(data)

    def __enter__(self) -> Sitting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.close(force=True)
