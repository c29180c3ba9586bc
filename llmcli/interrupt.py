"""Ctrl-C inside a compiled step.

Python runs a signal's handler only between its own instructions, and a step of a large model keeps it away for
seconds. The C level of a signal, though, writes a byte to the wakeup descriptor at once; a thread waiting there asks
the runner to stop. Python's own handler then raises KeyboardInterrupt (or what SIGTERM's does) as usual.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM call `stop` from another thread at once. Main thread only: elsewhere
    it does nothing, because signals never reach other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while True:
            data = os.read(reader, 64)
            if any(number in (signal.SIGINT, signal.SIGTERM) for number in data):
                stop()
            if 0 in data or not data:
                return

    thread = threading.Thread(target=watch, name="llm-interrupt", daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
