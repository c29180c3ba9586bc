"""Runs a command on a terminal of its own, as a person would."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FAKE = str(Path(__file__).with_name("fake_llm.py"))


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment (conftest.py has made it right) with nothing that changes colours or sizes (xdist sets COLUMNS)."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color", **extra}


def on_terminal(
    words: Sequence[str], extra: Mapping[str, str] = {}, interrupt_at: bytes = b"", number: int = signal.SIGINT, seconds: float = 120
) -> tuple[int, bytes]:
    """(exit code, all bytes that the terminal got). interrupt_at: send signal `number` once these bytes were shown."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *words], stdin=slave, stdout=slave, stderr=slave, env=environment(extra), start_new_session=True
    )
    os.close(slave)
    shown, deadline = b"", time.monotonic() + seconds
    with contextlib.suppress(OSError):  # EIO: the last writer has gone
        while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = os.read(master, 65536)
            if not part:
                break
            shown += part
            if interrupt_at and interrupt_at in shown:
                process.send_signal(number)
                interrupt_at = b""
    os.close(master)
    try:
        return process.wait(timeout=max(0.1, deadline - time.monotonic())), shown
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
