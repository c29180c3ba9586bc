"""What this machine can do at most, measured with kernels that run as a model's do: the figures that speeds are shares of.

Each is the best of some passes over about 0.4 s: a limit is what nothing can exceed, and other processes only take from it.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Notify
from llmcli.backends.cpu import objects, target
from llmcli.backends.cpu.records import HEADER, LIMIT, READ, ROW, ROWS_ONE, THREAD_BYTES, pack
from llmcli.backends.cpu.threads import KERNELS, Pool
from llmcli.formats.format import Bytes, padded

SECONDS = 0.4
CHUNK = 1 << 16
"""Bytes that `read` takes at once."""
STEPS = 1 << 14
"""Steps in a chunk of products: some 50 us."""
CHUNKS = 32
"""Chunks of products in a pass, for each thread: some 2 ms, so that some passes meet no other process."""
CHAINS = 16 if target.tile() == 8 else 2 if target.is_x86() and "avx2" not in target.features() else 4
"""Products in flight, of 512 bits: enough to hide each one's latency, few enough for the registers."""
OPERATIONS = {"dot": 16 * 4 * 2, "pairs": 16 * 2 * 2, "fma": 16 * 2}
"""Multiplications and additions in one dot4, in one dot2, and in one fused multiply-add of 16 lanes."""


@dataclass(frozen=True)
class Limits:
    """memory_read, model_read: bytes a second that all threads read, from a buffer that no cache holds, and from one of
    model_bytes; int8_operations, int16_operations, f32_operations: multiplications and additions a second."""

    threads: int
    cpu: str
    dot4: str
    cache_bytes: int
    memory_bytes: int
    memory_read: float
    model_bytes: int
    model_read: float
    int8_operations: float
    int16_operations: float
    f32_operations: float


def limits(threads: int, model_bytes: int, notify: Notify | None = None) -> Limits:
    """Measures all of them. Takes memory for four times the last-level cache, and the model's size."""
    keys: list[objects.Key] = [(f"measure.{name}", (CHAINS,)) for name in OPERATIONS]
    read: objects.Key = ("measure.read", ())
    addresses = objects.load([*KERNELS, *keys, read], notify)
    pool = Pool(threads, addresses)
    try:
        cache = last_level_cache()
        sizes = [padded(size, 8 * CHUNK) for size in (max(4 * cache, 1 << 28), model_bytes)]
        reads = []
        for size in sizes:
            reads.append(_read(pool, addresses[read], _memory(size)))
        products = [_products(pool, addresses[key]) * CHAINS * STEPS for key in keys]
    finally:
        pool.close()
    int8, int16, f32 = (rate * count for rate, count in zip(products, OPERATIONS.values(), strict=True))
    return Limits(
        threads=threads,
        cpu=cpu_name(),
        dot4=target.dot4_kind(),
        cache_bytes=cache,
        memory_bytes=sizes[0],
        memory_read=reads[0],
        model_bytes=sizes[1],
        model_read=reads[1],
        int8_operations=int8,
        int16_operations=int16,
        f32_operations=f32,
    )


def _read(pool: Pool, kernel: int, data: Bytes) -> float:
    """Bytes a second."""
    out = np.zeros(pool.threads * THREAD_BYTES, np.uint8)
    args = pack(READ, header=0, data=data.ctypes.data, chunk_bytes=CHUNK, out=out.ctypes.data)
    return len(data) * _passes(pool, kernel, args, len(data) // CHUNK)


def _products(pool: Pool, kernel: int) -> float:
    """Chunks a second."""
    out = np.zeros(pool.threads * THREAD_BYTES, np.uint8)
    args, chunks = pack(LIMIT, header=0, steps=STEPS, out=out.ctypes.data), CHUNKS * pool.threads
    return chunks * _passes(pool, kernel, args, chunks)


def _passes(pool: Pool, kernel: int, args: npt.NDArray[np.int64], chunks: int) -> float:
    """Passes over all chunks a second, in the quickest one."""
    error = np.zeros(1, np.int64)
    header = pack(HEADER, **{**dict.fromkeys(HEADER._fields, 0), "error": int(error.ctypes.data)})
    values = {"kernel": kernel, "args": int(args.ctypes.data), "rows": ROWS_ONE, "divisor": 1, "columns": chunks}
    table = pack(ROW, **values).reshape(1, len(ROW))
    return 1 / quickest(lambda: pool.run(table, header))


def quickest(run: Callable[[], object]) -> float:
    """Seconds of the quickest call, of three at least."""
    best, spent, calls = float("inf"), 0.0, 0
    while spent < SECONDS or calls < 3:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def _memory(size: int) -> Bytes:
    """Bytes that are really there, in large pages where the system has them, as a model's weights are."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    data.fill(1)
    return data


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache, 32 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [path.read_text().strip() for path in folder.glob("index*/size")]
    sizes = [int(text[:-1]) * units[text[-1]] for text in found if text[:-1].isdigit() and text[-1] in units]
    return max(sizes, default=1 << 25)


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls the CPU, else LLVM's name for it."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return target.name()
