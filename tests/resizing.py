"""A command on a terminal with a screen that can be read, typed at and resized."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence

import pyte

from terminal import environment

ENTER, BACKSPACE, DOWN, UP, ESCAPE, CTRL_C, HOME = "\r", "\x7f", "\x1b[B", "\x1b[A", "\x1b", "\x03", "\x1b[H"


class Terminal:
    """words: of Python. stdin: what a pipe brings; None: standard input is the terminal. Close it."""

    def __init__(
        self, words: Sequence[str], columns: int = 80, lines: int = 24, stdin: bytes | None = None, extra: Mapping[str, str] = {}
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._size(lines, columns)

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(1, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=slave if stdin is None else subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            env=environment({"COLORTERM": "", **extra}),
            preexec_fn=own_terminal,
        )
        os.close(slave)
        if stdin is not None and self.process.stdin is not None:
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        self._size(lines, columns)
        self.screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, met: Callable[[str], object], seconds: float = 60) -> str:
        """The screen, once this is so."""
        deadline = time.monotonic() + seconds
        while not met(self.text):
            assert time.monotonic() < deadline, f"still waiting; the screen:\n{self.text}\n{self.raw[-2000:]!r}"
            self._read(0.2)
        return self.text

    def wait(self, seconds: float) -> None:
        """Takes in what comes meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def end(self, seconds: float = 60) -> int:
        """The exit code, once it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; the screen:\n{self.text}"
            self._read(0.2)
        self._read(0.2)
        return self.process.returncode

    def _size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self, seconds: float) -> None:
        with contextlib.suppress(OSError):  # EIO: the last writer has gone
            while select.select([self._master], [], [], seconds)[0]:
                part = os.read(self._master, 65536)
                self.raw += part
                self._stream.feed(part)
                seconds = 0.0
