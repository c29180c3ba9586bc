"""Ctrl-C inside a compiled step.

Python runs a signal's handler only between its own instructions, and a step of a large model keeps it away for
seconds. The C level of a signal, though, writes a byte to the wakeup descriptor at once; a thread waiting there asks
the runner to stop. Python's own handler then raises KeyboardInterrupt (or what SIGTERM's does) as usual.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

_stops: list[Callable[[], None]] = []
"""What to call, of every block that is open."""
_told = threading.Lock()
"""Held while a signal is read and passed on."""
_others = -1
"""The wakeup descriptor that was there before the first of them."""


@contextlib.contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM call `stop` from another thread at once. Blocks may end in any order, as
    generators do. Main thread only: elsewhere it does nothing, because signals never reach other threads."""
    global _others
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = _pipe()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _others = _others if before == writer else before
    try:
        with _told:
            _signals(reader)  # one that came before this block, and that the thread is late for, stops nothing in it
            _stops.append(stop)
        yield
    finally:
        if stop in _stops:
            _stops.remove(stop)
        if not _stops:
            signal.set_wakeup_fd(_others, warn_on_full_buffer=False)


@functools.cache
def _pipe() -> tuple[int, int]:
    """The process's one pipe, with the thread that waits at its end. Both stay: taking them down could itself be
    interrupted, and a signal must never be written to a descriptor that is somebody else's by then."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader,), name="llm-interrupt", daemon=True).start()
    return reader, writer


def _watch(reader: int) -> None:
    while True:
        select.select([reader], [], [])
        with _told:
            if any(number in (signal.SIGINT, signal.SIGTERM) for number in _signals(reader)):
                for stop in list(_stops):
                    stop()


def _signals(reader: int) -> bytes:
    """The numbers of those that have come."""
    try:
        return os.read(reader, 64)
    except BlockingIOError:
        return b""
