"""Somebody who sits at a terminal: types, waits for what appears, looks at the screen.

The machine may be busy: whatever is to be seen is waited for, however long it takes, and nothing sleeps instead. A time limit passes
only where something is wrong.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

from terminal import environment

SENT = b"\x1b[?2004l"
"""What an editor writes when it is done: pasting is as it was."""
ENTER, BACKSPACE, ESCAPE, TAB, CTRL_C, CTRL_D = "\r", "\x7f", "\x1b", "\t", "\x03", "\x04"
UP, DOWN, LEFT, HOME = "\x1b[A", "\x1b[B", "\x1b[D", "\x1b[H"


LEADER = """
import fcntl, os, signal, socket, sys, termios
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, lambda *_: None)
told = socket.socket(fileno=int(sys.argv[1]))
told.set_inheritable(False)
command = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
told.send(b"%d" % command)
told.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
told.recv(1)
"""
"""What a shell is on other terminals: with the end of the process that a terminal belongs to, what is not yet shown is lost."""


class Sitting:
    """A command on a terminal of so many columns and rows, and the screen that it draws. Close it.

    words: of Python. stdin: what a pipe brings; None: standard input is the terminal."""

    def __init__(
        self, words: Sequence[str], extra: Mapping[str, str] = {}, columns: int = 60, rows: int = 24, stdin: bytes | None = None
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        """Everything that the terminal got."""
        self.code: int | None = None
        """How the command has ended; minus the signal that did it."""
        self._master, slave = pty.openpty()
        self._size(columns, rows)
        self._told, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            self._leader = subprocess.Popen(
                [sys.executable, "-ISc", LEADER, str(theirs.fileno()), sys.executable, *words],
                stdin=slave if stdin is None else subprocess.PIPE,
                stdout=slave,
                stderr=slave,
                env=environment({"COLORTERM": "", **extra}),
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        os.close(slave)
        self.pid = int(self._told.recv(16))
        if stdin is not None and self._leader.stdin is not None:
            self._leader.stdin.write(stdin)
            self._leader.stdin.close()

    def __enter__(self) -> Sitting:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            self.kill(signal.SIGKILL)
        self._told.close()
        self._leader.wait()
        os.close(self._master)

    # What somebody does

    def type(self, keys: str) -> None:
        """Keys; Enter is \\r."""
        os.write(self._master, keys.encode())

    def enter(self, text: str) -> None:
        """A message or a command, and all that comes of it, up to the next prompt."""
        sent = self.raw.count(SENT)
        self.type(f"{text}\r")
        self.until(lambda _: self.raw.count(SENT) > sent)
        self.wait_prompt()

    def resize(self, columns: int, rows: int) -> None:
        """Until the command has drawn something again."""
        before = len(self.raw)
        self.screen.resize(rows, columns)
        self._size(columns, rows)
        self.until(lambda _: len(self.raw) > before)

    # What is on the screen

    @property
    def text(self) -> str:
        """Without spaces at the ends of lines."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def look(self) -> list[str]:
        """The screen's lines, without empty ones at the bottom."""
        return self.text.rstrip("\n").split("\n")

    def until(self, met: Callable[[str], object], seconds: float = 120) -> str:
        """The screen, once this is so."""
        deadline = time.monotonic() + seconds
        while not met(self.text):
            left = deadline - time.monotonic()
            assert left > 0 and self.code is None, f"still waiting; the screen:\n{self.text}\n{self.raw[-2000:]!r}"
            self._read(left)
        return self.text

    def wait(self, text: str) -> str:
        """The screen, once the text is on it."""
        return self.until(lambda screen: text in screen)

    def wait_lines(self, *lines: str) -> None:
        """Until these are the last lines."""
        self.until(lambda _: self.look()[-len(lines) :] == list(lines))

    def wait_prompt(self) -> None:
        """Until the last line is an empty prompt."""
        self.wait_lines(">>>")

    def wait_answer(self) -> None:
        """Until an answer has begun."""
        self.until(lambda _: not self.look()[-1].startswith((">>>", "...")))

    # How it goes and ends

    def wait_idle(self, seconds: float) -> None:
        """Until it has computed nothing for so long."""
        deadline, before = time.monotonic() + 120, -1.0
        while before != (before := self.computing()):
            assert time.monotonic() < deadline, "it goes on computing"
            self._pass(seconds)

    def computing(self) -> float:
        """Seconds that the process has computed for, all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = 120) -> int:
        """The exit code, once it has ended."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            left = deadline - time.monotonic()
            assert left > 0, f"it does not end; the screen:\n{self.text}"
            self._read(left)
        return self.code

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _pass(self, seconds: float) -> None:
        """Takes in what comes meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self.code is None:
            self._read(left)

    def _read(self, seconds: float) -> None:
        """What has come, once something has."""
        over = self._told in select.select([self._master, self._told], [], [], seconds)[0]
        while select.select([self._master], [], [], 0)[0]:
            part = os.read(self._master, 65536)
            self.raw += part
            self._stream.feed(part)
        if over:
            self.code = int(self._told.recv(16))
