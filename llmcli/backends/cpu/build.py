"""Compiling kernels in other processes: Numba is never imported here, and its compiler lock makes threads useless.

Each compiler process (compile.py) gets one kernel at a time and sends its image back, so that fast and slow
kernels spread by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from llmcli.backends.cpu.objects import Key
from llmcli.errors import InternalError, ResourceError

PROCESSES = 2
ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds the package, for the other process's import path."""


def compiled(symbols: Mapping[Key, str]) -> Iterator[tuple[Key, bytes]]:
    """Yields (key, image) of each kernel as it is ready. symbols: the name of each one's function.

    Raises InternalError when a kernel does not compile, ResourceError when a compiler cannot start or ends early."""
    waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
    for key in sorted(symbols, key=_effort, reverse=True):
        waiting.put(key)
    done: queue.SimpleQueue[tuple[Key, bytes | Exception]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(min(PROCESSES, len(symbols), os.cpu_count() or 1)):
            compiler = stack.enter_context(_Compiler())
            threading.Thread(target=_feed, args=(compiler, symbols, waiting, done), daemon=True).start()
        for _ in symbols:
            key, code = done.get()
            if isinstance(code, Exception):
                raise code
            yield key, code


def _effort(key: Key) -> int:
    """Long ones first, so that none is left to one process at the end."""
    slow = {"attention.rows": 100, "top.rows": 50, "step.run": 40}
    return slow.get(key[0], sum(p for p in key[1] if isinstance(p, int)))


def _feed(
    compiler: _Compiler,
    symbols: Mapping[Key, str],
    waiting: queue.SimpleQueue[Key],
    done: queue.SimpleQueue[tuple[Key, bytes | Exception]],
) -> None:
    """Hands kernels to one process until none waits."""
    while True:
        try:
            key = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            done.put((key, compiler.compile(key, symbols[key])))
        except Exception as error:  # raised by the thread that waits for the result
            done.put((key, error))
            return


class _Compiler:
    """One compiler process. As a context manager it ends the process, whatever that is doing."""

    def __init__(self) -> None:
        settings = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_") or k in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")}
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), settings.get("PYTHONPATH"))))
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        try:
            # -P: a numba.py in the user's current folder is not ours to run.
            command = [sys.executable, "-P", "-m", "llmcli.backends.cpu.compile"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=settings)
        except OSError as error:
            self.errors.close()
            raise ResourceError("cannot start the kernel compiler", str(error)) from error

    def __enter__(self) -> _Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def compile(self, key: Key, symbol: str) -> bytes:
        """The image of one kernel."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):  # told by the missing answer
            self.process.stdin.write(json.dumps([key[0], key[1], symbol]).encode() + b"\n")
            self.process.stdin.flush()
        head = self.process.stdout.readline()
        code = self.process.stdout.read(int(head)) if head.strip() else b""
        if head and not code:
            raise InternalError(f"kernel {key[0]} {key[1]} does not compile", self._last_error())
        if not head or len(code) < int(head):
            raise ResourceError("the kernel compiler ended early", f"status {self.process.wait()} {self._last_error()}".strip())
        return code

    def _last_error(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
