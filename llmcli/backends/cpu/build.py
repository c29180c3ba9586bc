"""Compiling kernels in other processes: Numba is never imported here, and its compiler lock makes threads useless.

Each compiler process (compile.py) gets one kernel at a time and sends its image back, so that fast and slow
kernels spread by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from llmcli import memory
from llmcli.backends.cpu.objects import Key
from llmcli.errors import InternalError, OutOfMemory, ResourceError

PROCESSES = 2
USUAL, LEAST = 224 << 20, 136 << 20
"""Bytes that a compiler takes after all kernels of `llm warmup`, and after those of a small model alone: measured, with its libraries."""
TODO = "Close other programs, or raise the limit for one run of llm warmup: kernels are kept"
ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds the package, for the other process's import path."""


def compiled(symbols: Mapping[Key, str]) -> Iterator[tuple[Key, bytes]]:
    """Yields (key, image) of each kernel as it is ready. symbols: the name of each one's function.

    Raises InternalError when a kernel does not compile, OutOfMemory where there is no room for a compiler, ResourceError when one
    cannot start or ends early."""
    count = _processes()
    waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
    for key in sorted(symbols, key=_effort, reverse=True):
        waiting.put(key)
    done: queue.SimpleQueue[tuple[Key, bytes | Exception]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(min(count, len(symbols))):
            compiler = stack.enter_context(_Compiler())
            threading.Thread(target=_feed, args=(compiler, symbols, waiting, done), daemon=True).start()
        for _ in symbols:
            key, code = done.get()
            if isinstance(code, Exception):
                raise code
            yield key, code


def _processes() -> int:
    """How many compilers there are CPUs and memory for: one too many is ended by the system, or this process is."""
    memory.check(LEAST, "the kernel compiler", TODO)
    room = memory.available()
    return max(1, min(PROCESSES, os.cpu_count() or 1, PROCESSES if room is None else room // USUAL))


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
            status, last = self.process.wait(), self._last_error()
            if status == -signal.SIGKILL:  # what a system that has no memory left does
                raise OutOfMemory("not enough memory for the kernel compiler", "the system ended it", TODO)
            raise ResourceError("the kernel compiler ended early", f"status {status} {last}".strip())
        return code

    def _last_error(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
