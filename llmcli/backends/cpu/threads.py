"""The threads that compute: one for each physical core, in compiled code all through a step, asleep between texts.

The caller's thread is thread 0. The others are Python threads that call the compiled `step.run` through ctypes, which
releases the GIL; it returns when there has been nothing to do for about a millisecond, and they wait at a semaphore.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cpu.records import OVER, STEP, THREAD_BYTES, pack
from llmcli.errors import ResourceError
from llmcli.formats.format import aligned

KERNELS = (("step.start", ()), ("step.run", ()))
SPINS = 2000
"""How often an idle thread looks for work before it gives way: some 50 to 100 us."""
YIELDS = 2000
"""How often it then gives way before it sleeps: about 1 ms where nobody else wants the core."""

Function = Callable[[int, int, int], None]


def function(address: int) -> Function:
    """A compiled kernel for Python: f(args, chunk, thread), which releases the GIL."""
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_ssize_t] * 3)(address)
    unused = (ctypes.c_void_p * 2)()  # Numba's convention: status = f(&result, &exception, ...)
    return functools.partial(call, ctypes.byref(unused), ctypes.byref(unused, 8))


class Pool:
    """`threads` threads, the caller's included. kernels: the addresses of KERNELS. Not for two callers at once.

    Never fork once it exists (a child would have none of its threads, and run alone)."""

    def __init__(self, threads: int, kernels: Mapping[tuple[str, tuple[int | str, ...]], int]) -> None:
        self.threads = threads
        self._start, self._run = (function(kernels[key]) for key in KERNELS)
        # What threads write lies in cache lines of its own: ticket, done, stop, then a word of each thread.
        words = aligned((3 + threads) * THREAD_BYTES).view(np.int64)
        words[:] = 1  # all asleep
        ticket, done, self._stop = (words[i * THREAD_BYTES // 8 :][:1] for i in range(3))
        ticket[0] = OVER
        self.resume()
        self._woken = np.zeros(threads, np.int64)
        self._step = pack(
            STEP,
            header=0,
            table=0,
            rows=0,
            ticket=ticket.ctypes.data,
            done=done.ctypes.data,
            stop=self._stop.ctypes.data,
            asleep=words.ctypes.data + 3 * THREAD_BYTES,
            woken=self._woken.ctypes.data,
            threads=threads,
            spins=SPINS,
            yields=YIELDS,
        )
        self._record = int(self._step.ctypes.data)
        self._semaphores = [threading.Semaphore(0) for _ in range(threads)]
        closing = threading.Event()
        shared = (self._run, self._step, words, self._woken)
        workers: list[threading.Thread] = []
        for number in range(1, threads):
            args = (number, shared, self._semaphores[number], closing)
            worker = threading.Thread(target=_serve, args=args, name=f"llm-{number}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:
                _close(workers, self._semaphores, closing)
                raise ResourceError(f"cannot start thread {number + 1} of {threads}", str(error), "Use fewer threads (-t)") from error
            workers.append(worker)
        self._finalizer = weakref.finalize(self, _close, workers, self._semaphores, closing)

    def close(self) -> None:
        """Ends the threads. Also done at exit, and when the pool is forgotten."""
        self._finalizer()

    def run(self, table: npt.NDArray[np.int64], header: npt.NDArray[np.int64]) -> bool:
        """Computes the ROWs of `table` with the step's HEADER. Returns False when `stop` ended it early."""
        step, record = self._step, self._record
        step[STEP.table // 8], step[STEP.rows // 8], step[STEP.header // 8] = table.ctypes.data, len(table), header.ctypes.data
        try:
            self._start(record, 0, 0)
            for number in np.flatnonzero(self._woken):
                self._semaphores[number].release()
                self._woken[number] = 0
        finally:  # an exception from a signal's handler must not leave a step half done
            self._run(record, 0, 0)
        return not self._stop[0]

    def resume(self) -> None:
        """Forgets an earlier `stop`."""
        self._stop[0] = 0

    def stop(self) -> None:
        """Ends the running step after the operation it is at, and following ones until `resume`. From any thread."""
        self._stop[0] = 1


def _serve(number: int, shared: tuple[Any, ...], semaphore: threading.Semaphore, closing: threading.Event) -> None:
    """A worker's life. It holds the memory it shares with the pool, not the pool, so that a forgotten pool ends."""
    run, step = shared[:2]
    while True:
        semaphore.acquire()
        if closing.is_set():
            return
        run(step.ctypes.data, 0, number)


def _close(workers: list[threading.Thread], semaphores: list[threading.Semaphore], closing: threading.Event) -> None:
    closing.set()
    for semaphore in semaphores:
        semaphore.release()
    for worker in workers:
        worker.join()


def usable() -> int:
    """How many threads are worth having: physical cores among the CPUs we may use, within the cgroup's CPU quota."""
    cores, most = len({_core(cpu) for cpu in _cpus()}), quota()
    return max(1, cores if most is None else min(cores, math.ceil(most)))


def quota() -> float | None:
    """CPUs' worth of time that the cgroup lets us have; None: no limit."""
    return min(_quotas(), default=None)


def _cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core(cpu: int) -> str:
    """What hardware threads of one core have in common."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text().strip()
        except OSError:
            pass
    return str(cpu)


def _quotas(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """CPUs' worth of time that this process's cgroup and each of its ancestors may use, where they are limited."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers and (root / controllers).is_dir() else root / ("cpu" if controllers else "")
        folder = base / path.lstrip("/")
        while True:
            quotas += _quota(folder)
            if folder == base:
                break
            folder = folder.parent
    return quotas


def _quota(folder: Path) -> list[float]:
    try:
        if (folder / "cpu.max").exists():  # version 2
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [int(most) / int(period)] if most not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
