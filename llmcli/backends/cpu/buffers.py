"""The memory of a step: the plan's buffers, scratch for kernels, and the step's input as kernels read it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch
from llmcli.backends.cpu import choice, tiles
from llmcli.backends.cpu.experts import Memory
from llmcli.backends.cpu.records import HEADER, pack
from llmcli.errors import OutOfMemory
from llmcli.formats.format import GROUP, ROWS, Bytes, aligned, padded
from llmcli.kv import BLOCK
from llmcli.ops import TOP
from llmcli.plan import Plan, Slot

TALLEST = 8
"""Rows are computed in tiles of up to 8: every buffer has room for a multiple."""
LINE = 64


class Buffers:
    """Memory for steps of up to `tokens` tokens, any number of output rows (see `grow`) and `threads` threads."""

    def __init__(self, plan: Plan, tokens: int, threads: int) -> None:
        self.plan = plan
        self.tokens = padded(tokens, TALLEST)
        self.outputs = 0
        self.keep = min(TOP, plan.vocab)
        self.strides = [padded(4 * buffer.width, LINE) for buffer in plan.buffers]
        self._widest = max((op.inputs[0].width for op in plan.ops if op.kind == "linear"), default=0)
        self._arrays = [_new(0) for _ in plan.buffers]
        self._codes = [_new(0), _new(0)]
        self._allocate("tokens", self.tokens)
        self.experts = Memory(plan, self.tokens, TALLEST, _new)
        self.threads = threads
        self.scratch_bytes, parts = _attention_memory(plan)
        columns = max((weight.shape[-1] for weight in plan.weights.values() if len(weight.shape) > 1), default=0)
        self.scratch_bytes = max(self.scratch_bytes, ROWS * padded(columns, GROUP))
        self.scratch = _new(self.scratch_bytes * threads)
        self.parts = _new(parts)
        self.counters = np.zeros(max((layer.kv_heads for layer in plan.cache), default=0), np.int64)
        self.error = np.zeros(1, np.int64)
        self.header = pack(HEADER, **dict.fromkeys(HEADER._fields, 0))
        self.header[HEADER.error // 8] = self.error.ctypes.data
        self.grow(1)

    def grow(self, outputs: int) -> bool:
        """Makes room for so many output rows. Says whether addresses have changed."""
        if outputs <= self.outputs:
            return False
        self.outputs = min(padded(max(outputs, 2 * self.outputs), TALLEST), self.tokens)
        self._allocate("outputs", self.outputs)
        self.top_ids = np.empty((self.outputs, self.keep), np.int32)
        self.top_values = np.empty((self.outputs, self.keep), np.float32)
        self.top_stats = np.empty((self.outputs, 2), np.float64)
        return True

    def _allocate(self, kind: str, rows: int) -> None:
        """New memory for the buffers of token rows or of output rows, and for one of them quantized."""
        for number, buffer in enumerate(self.plan.buffers):
            if buffer.rows == kind:
                self._arrays[number] = _new(rows * self.strides[number])
        self._codes[kind == "outputs"] = _new(rows * padded(self._widest, GROUP) * (GROUP + 8) // GROUP)

    def address(self, slot: Slot) -> int:
        return int(self._arrays[slot.buffer].ctypes.data + 4 * slot.start)

    def quantized(self, outputs: int, columns: int) -> dict[str, int]:
        """The addresses of codes, scales and sums of up to all rows of so many columns."""
        rows, columns = (self.outputs if outputs else self.tokens), padded(columns, GROUP)
        codes = int(self._codes[outputs].ctypes.data)
        scales = codes + rows * columns
        return {"codes": codes, "scales": scales, "sums": scales + rows * columns // GROUP * 4}

    def rows(self, buffer: int, count: int) -> npt.NDArray[np.float32]:
        """A view of a buffer's first rows: f32 [count, width]."""
        width = self.strides[buffer] // 4
        return self._arrays[buffer].view(np.float32)[: count * width].reshape(count, width)[:, : self.plan.buffers[buffer].width]

    def fill(self, batch: Batch, tables: npt.NDArray[np.int32], start: int, stop: int, outputs: npt.NDArray[np.int32]) -> None:
        """Takes tokens start .. stop of a batch as the step's input; outputs: rows counted from `start`."""
        self._input = [np.ascontiguousarray(x[start:stop], np.int32) for x in (batch.tokens, batch.positions, batch.owners)]
        self._input += [tables, np.ascontiguousarray(outputs, np.int32)]
        addresses = [int(x.ctypes.data) for x in self._input]
        self.error[0] = 0
        self.header[: HEADER.error // 8] = [stop - start, len(outputs), *addresses[:4], tables.shape[1] * 4, addresses[4]]


def _attention_memory(plan: Plan) -> tuple[int, int]:
    """Bytes of scratch for one thread, and of the sums over blocks that threads share."""
    scratch = parts = 0
    for op in plan.ops:
        if op.kind == "attention":
            size, kv_heads = op.integer("head_size"), op.integer("kv_heads")
            group = op.integer("heads") // kv_heads
            one, some = (tiles.attention_tile(size, group * tokens) for tokens in (1, choice.tokens_together(group)))
            scratch = max(scratch, one.scratch_bytes, some.scratch_bytes)
            parts = max(parts, kv_heads * -(-plan.context // BLOCK) * one.block_bytes)
    return scratch, parts


def _new(size: int) -> Bytes:
    try:
        return aligned(size)
    except MemoryError as error:
        raise OutOfMemory(f"no room for {size / 2**20:,.0f} MiB of activations", str(error)) from error
