"""Compiling kernels in other processes: Numba is never imported here, and its compiler lock makes threads useless.

Each compiler process gets one kernel at a time, as a line of JSON, and answers with a line that says how many bytes of code follow (none:
standard error says why), so that fast and slow kernels spread by themselves.
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
from typing import IO, TypeVar

from llmcli.errors import InternalError, OutOfMemory, ResourceError

TODO = "Close other programs, or raise the limit for one run of llm warmup: kernels are kept"
ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package, for the other process's import path."""
Key = TypeVar("Key")


def compiled(module: str, requests: Mapping[Key, tuple[str, object]], processes: int) -> Iterator[tuple[Key, bytes]]:
    """Yields (key, code) of each kernel as it is ready. module: what compiles, run as a program; requests: in the order in which they are
    begun, what errors call each kernel, and what the compiler is asked.

    Raises InternalError when a kernel does not compile, OutOfMemory when the system ended a compiler, ResourceError when
    one cannot start or ends early."""
    waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
    for key in requests:
        waiting.put(key)
    done: queue.SimpleQueue[tuple[Key, bytes | Exception]] = queue.SimpleQueue()

    def feed(compiler: Compiler) -> None:
        """Hands kernels to one process until none waits."""
        while True:
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((key, compiler.compile(*requests[key])))
            except Exception as error:  # raised by the thread that waits for the result
                done.put((key, error))
                return

    with contextlib.ExitStack() as stack:
        for _ in range(min(processes, len(requests), os.cpu_count() or 1)):
            compiler = stack.enter_context(Compiler(module))
            threading.Thread(target=feed, args=(compiler,), daemon=True).start()
        for _ in requests:
            key, code = done.get()
            if isinstance(code, Exception):
                raise code
            yield key, code


class Compiler:
    """One compiler process. As a context manager it ends the process, whatever that is doing."""

    def __init__(self, module: str) -> None:
        settings = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_") or k in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")}
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), settings.get("PYTHONPATH"))))
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        try:
            # -P: a numba.py in the user's current folder is not ours to run.
            command = [sys.executable, "-P", "-m", module]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=settings)
        except OSError as error:
            self.errors.close()
            raise ResourceError("cannot start the kernel compiler", str(error)) from error

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def compile(self, name: str, request: object) -> bytes:
        """The code of one kernel."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):  # told by the missing answer
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        head = self.process.stdout.readline()
        code = self.process.stdout.read(int(head)) if head.strip() else b""
        if head and not code:
            raise InternalError(f"kernel {name} does not compile", self._last_error())
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
