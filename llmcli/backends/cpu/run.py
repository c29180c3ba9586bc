"""The CPU backend: a plan becomes tables of compiled kernels, and a step is one call that runs them on all threads."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch, Notify, Result
from llmcli.backends.cpu import choice, objects, threads
from llmcli.backends.cpu.buffers import Buffers
from llmcli.backends.cpu.choice import supports
from llmcli.backends.cpu.fuse import fuse
from llmcli.backends.cpu.lower import Lowering, Table
from llmcli.backends.cpu.records import CHECKSUM, pack
from llmcli.errors import NumericalError, Stopped
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache
from llmcli.plan import Plan

__all__ = ["CpuRunner", "checksum", "load", "supports"]

CHECKSUM_PIECE = 1 << 20
"""Bytes that one call of the checksum kernel sums up (kernels/checksum.py)."""


def load(
    plan: Plan,
    weights: Mapping[str, PackedTensor],
    cache: KVCache,
    threads: int = 0,
    most_tokens: int = 256,
    notify: Notify | None = None,
) -> CpuRunner:
    """A Runner. threads 0: one for each usable core; most_tokens: what is computed at once, longer steps are cut.
    Kernels that were never needed before are compiled; `notify` hears of it."""
    return CpuRunner(plan, weights, cache, threads, most_tokens, notify)


class CpuRunner:
    """See backends.backend.Runner. Raises CorruptFile where a weight does not fit the plan."""

    def __init__(
        self, plan: Plan, weights: Mapping[str, PackedTensor], cache: KVCache, count: int, most_tokens: int, notify: Notify | None
    ) -> None:
        self.plan, self.cache = plan, cache
        formats = {name: weights[name].format for name in plan.weights}
        ops = fuse(plan, lambda name: choice.integers(formats[name]))
        addresses = objects.load(choice.kernels(ops, formats, cache.dtype), notify)
        self._pool = threads.Pool(count or threads.usable(), addresses)
        self._most = most_tokens
        self._buffers = Buffers(plan, most_tokens, self._pool.threads)
        self._lowering = Lowering(plan, ops, weights, cache, self._buffers, addresses)
        self._tables: dict[tuple[int, int], Table] = {}

    def run(self, batch: Batch) -> Result:
        self._pool.resume()
        if len(batch.tokens) <= self._most:
            return self._piece(batch, 0)
        whole = self._room(len(batch.outputs))
        done = 0
        for start in range(0, len(batch.tokens), self._most):
            part = self._piece(batch, start)
            for name, array in vars(part).items():
                getattr(whole, name)[done : done + len(array)] = array
            done += len(part.logits)
        return whole

    def _piece(self, batch: Batch, start: int) -> Result:
        """Computes the tokens from `start` on, as many as are computed at once."""
        table, outputs = self._prepare(batch, start)
        if not self._pool.run(table.rows, self._buffers.header):
            raise Stopped("stopped")
        self._raise_fault(start)
        buffers = self._buffers
        stats = buffers.top_stats[:outputs]
        logits = buffers.rows(self.plan.logits, outputs)
        return Result(logits, buffers.top_ids[:outputs], buffers.top_values[:outputs], stats[:, 0], stats[:, 1])

    def _room(self, count: int) -> Result:
        """Space for so many output rows."""
        logits = np.empty((count, self.plan.vocab), np.float32)
        ids, values = np.empty((count, self._buffers.keep), np.int32), np.empty((count, self._buffers.keep), np.float32)
        return Result(logits, ids, values, np.empty(count), np.empty(count))

    def _prepare(self, batch: Batch, start: int) -> tuple[Table, int]:
        """Takes the tokens from `start` on as input. Returns the step's table and how many output rows it has."""
        stop = min(start + self._most, len(batch.tokens))
        first, last = np.searchsorted(batch.outputs, (start, stop))
        if self._buffers.grow(int(last - first)):
            self._tables.clear()
        self._buffers.fill(batch, _block_tables(batch), start, stop, batch.outputs[first:last] - start)
        heights = choice.height(stop - start), choice.height(int(last - first))
        if heights not in self._tables:
            self._tables[heights] = self._lowering.table(*heights)
        return self._tables[heights], int(last - first)

    def _raise_fault(self, start: int) -> None:
        """Raises what a kernel has left in the error word (kernels/faults.py)."""
        word = int(self._buffers.error[0])
        if not word:
            return
        op, token = self.plan.ops[word - 1 >> 32], start + (word - 1 & 0xFFFFFFFF)
        where = f"at {op.label}, token {token} of the step"
        if op.kind == "cache_write" and self.cache.dtype == "f16":
            raise NumericalError("a key or value beyond 65,504, NaN or infinity", where, "Use --kv f32")
        raise NumericalError("NaN or infinity", where)

    def times(self, batch: Batch) -> list[tuple[str, str, float]]:
        """Computes a step of at most `most_tokens` tokens and says (kind, label, seconds) of each operation."""
        self._pool.resume()
        table, _ = self._prepare(batch, 0)
        found = []
        for row, (number, op) in enumerate(self._lowering.ops):
            start = time.perf_counter()
            self._pool.run(table.rows[row : row + 1], self._buffers.header)
            found.append((op.kind, self.plan.ops[number].label, time.perf_counter() - start))
        return found

    def stop(self) -> None:
        self._pool.stop()

    def close(self) -> None:
        self._pool.close()
        self._tables.clear()
        self._lowering.weights = {}


def _block_tables(batch: Batch) -> npt.NDArray[np.int32]:
    """The numbers of each sequence's blocks: i32 [sequences, blocks of the longest]."""
    tables = np.zeros((len(batch.sequences), max(len(s.blocks) for s in batch.sequences)), np.int32)
    for row, sequence in zip(tables, batch.sequences, strict=True):
        row[: len(sequence.blocks)] = sequence.blocks
    return tables


def checksum() -> Callable[[int, int, int], int]:
    """The function (address, size in bytes, number of the first word) -> sum over these bytes, as weights/checksum.py
    defines it. size: a multiple of 64. It releases the GIL; several threads may call it."""
    key = ("checksum.sum", ())
    kernel = threads.function(objects.load([key])[key])

    def summed(address: int, size: int, first_word: int) -> int:
        out = ctypes.c_int64(0)
        args = pack(CHECKSUM, header=0, data=address, size=size, start=first_word, out=ctypes.addressof(out))
        for chunk in range(-(-size // CHECKSUM_PIECE)):
            kernel(args.ctypes.data, chunk, 0)
        return out.value % 2**64

    return summed
