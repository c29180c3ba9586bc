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
from llmcli.backends.cpu.lower import Lowering, Table
from llmcli.backends.cpu.objects import Key
from llmcli.backends.cpu.records import CHECKSUM, CLOCK, ROW, ROWS_ONE, pack
from llmcli.errors import NumericalError, Stopped
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache
from llmcli.plan import Op, Plan

__all__ = ["CpuRunner", "checksum", "load", "supports"]

CHECKSUM_KERNEL: objects.Key = ("checksum.sum", ())
CHECKSUM_PIECE = 1 << 20
"""Bytes that one call of the checksum kernel sums up (kernels/checksum.py)."""
CLOCK_KERNEL: Key = ("measure.clock", ())


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
        ops = choice.operations(plan, formats)
        before = objects.compile_seconds()
        addresses = objects.load([*choice.kernels(ops, formats, cache.dtype), CHECKSUM_KERNEL], notify)
        self.compile_seconds = objects.compile_seconds() - before
        self._pool = threads.Pool(count or threads.usable(), addresses)
        self.threads, self._most = self._pool.threads, most_tokens
        self._buffers = Buffers(plan, most_tokens, self._pool.threads)
        self._lowering = Lowering(plan, ops, weights, cache, self._buffers, addresses)
        self._tables: dict[tuple[int, int], Table] = {}

    def run(self, batch: Batch) -> Result:
        self._pool.resume()
        if len(batch.tokens) <= self._most:
            return self._piece(batch, 0)
        whole = self._room(len(batch.tokens), len(batch.outputs))
        done = 0
        for start in range(0, len(batch.tokens), self._most):
            part = self._piece(batch, start)
            for name in ("logits", "top_ids", "top_logits", "logsumexp", "entropy"):
                getattr(whole, name)[done : done + len(part.logits)] = getattr(part, name)
            for number in self.plan.taps:
                name, first = self.plan.buffers[number].name, done if self._of_outputs(number) else start
                whole.taps[name][first : first + len(part.taps[name])] = part.taps[name]
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
        tokens = min(self._most, len(batch.tokens) - start)
        taps = {self.plan.buffers[n].name: buffers.rows(n, outputs if self._of_outputs(n) else tokens) for n in self.plan.taps}
        return Result(logits, buffers.top_ids[:outputs], buffers.top_values[:outputs], stats[:, 0], stats[:, 1], taps)

    def _of_outputs(self, buffer: int) -> bool:
        """Whether a buffer has a row for each output row, not for each token."""
        return self.plan.buffers[buffer].rows == "outputs"

    def _room(self, tokens: int, count: int) -> Result:
        """Space for a step of so many tokens and output rows."""
        logits = np.empty((count, self.plan.buffers[self.plan.logits].width), np.float32)
        ids, values = np.empty((count, self._buffers.keep), np.int32), np.empty((count, self._buffers.keep), np.float32)
        taps = {}
        for number in self.plan.taps:
            buffer = self.plan.buffers[number]
            taps[buffer.name] = np.empty((count if self._of_outputs(number) else tokens, buffer.width), np.float32)
        return Result(logits, ids, values, np.empty(count), np.empty(count), taps)

    def _prepare(self, batch: Batch, start: int) -> tuple[Table, int]:
        """Takes the tokens from `start` on as input. Returns the step's table and how many output rows it has."""
        stop = min(start + self._most, len(batch.tokens))
        first, last = np.searchsorted(batch.outputs, (start, stop))
        if self._buffers.grow(int(last - first)):
            self._tables.clear()
        self._buffers.fill(batch, _block_tables(batch), start, stop, batch.outputs[first:last] - start)
        for number in self.plan.given:
            self._buffers.rows(number, stop - start)[:] = batch.given[self.plan.buffers[number].name][start:stop]
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
        if op.kind == "cache_write" and self.cache.dtype != "f32":
            most = "65,504" if self.cache.dtype == "f16" else "10^18"
            raise NumericalError(f"a key or value beyond {most}, NaN or infinity", where, "Use --kv f32")
        raise NumericalError("NaN or infinity", where)

    def times(self, batch: Batch) -> list[tuple[Op, float]]:
        """Computes a step of at most `most_tokens` tokens and says how many seconds each operation took (those of `fuse`, in order).
        A clock is read between two operations, in the compiled step, so that they take what they take without it."""
        self._pool.resume()
        table, _ = self._prepare(batch, 0)
        clock = objects.load([CLOCK_KERNEL])[CLOCK_KERNEL]
        times = np.zeros((len(table.rows) + 1, 2), np.int64)
        args = [pack(CLOCK, header=0, clock=time.CLOCK_MONOTONIC, out=int(row.ctypes.data)) for row in times]
        rows = np.empty((2 * len(table.rows) + 1, len(ROW)), np.int64)
        rows[0::2] = [(clock, one.ctypes.data, ROWS_ONE, 1, 1) for one in args]
        rows[1::2] = table.rows
        if not self._pool.run(rows, self._buffers.header):
            raise Stopped("stopped")
        self._raise_fault(0)
        seconds = np.diff(times[:, 0] * 10**9 + times[:, 1]) / 1e9
        return [(op, float(took)) for (_, op), took in zip(self._lowering.ops, seconds, strict=True)]

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


def checksum(notify: Notify | None = None) -> Callable[[int, int, int], int] | None:
    """See backends.backend; None before the kernel was compiled, which `load` sees to. size: a multiple of 64. It releases the GIL;
    several threads may call it."""
    address = objects.ready(CHECKSUM_KERNEL, notify)
    if address is None:
        return None
    kernel = threads.function(address)

    def summed(address: int, size: int, first_word: int) -> int:
        out = ctypes.c_int64(0)
        args = pack(CHECKSUM, header=0, data=address, size=size, start=first_word, out=ctypes.addressof(out))
        for chunk in range(-(-size // CHECKSUM_PIECE)):
            kernel(args.ctypes.data, chunk, 0)
        return out.value % 2**64

    return summed
