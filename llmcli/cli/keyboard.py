"""The keyboard during a chat, while no prompt reads it: Ctrl-C stops the answer and nothing else; other keys wait."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether Ctrl-C was pressed."""

    asked = False


@contextlib.contextmanager
def answering() -> Iterator[Stop]:
    """While the block runs, the first Ctrl-C asks for a stop, which also ends the running step (interrupt.py); another one
    is a KeyboardInterrupt, in case nobody heeds the first."""
    stop = Stop()

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """While the block runs, the terminal shows no keys of its own accord and leaves Enter what it is: what is pressed during an
    answer does not end up inside it, and the next prompt reads it."""
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    now = termios.tcgetattr(descriptor)
    now[0] &= ~termios.ICRNL
    now[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
