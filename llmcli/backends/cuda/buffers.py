"""What a step works on: activations on the GPU, and page-locked memory of this machine for what goes there and comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch
from llmcli.backends.cuda.kernels import groups, linear, quantize, top
from llmcli.backends.cuda.kernels import step as steps
from llmcli.backends.cuda.memory import Array, Memory
from llmcli.formats.format import padded
from llmcli.kv import BLOCK
from llmcli.ops import TOP
from llmcli.plan import Plan, Slot

ALIGN = 32
"""Rows begin at a multiple of so many numbers."""
DTYPES: dict[str, Any] = {"f32": np.float32, "i32": np.int32}


def height(rows: int) -> int:
    """The power of two that so many rows are launched as; 0 for none."""
    return 1 << (rows - 1).bit_length() if rows else 0


class Experts:
    """Rows for the choices of a step's tokens: inner activations, results, and inputs of either product in int8; the choices by expert."""

    def __init__(self, plan: Plan, memory: Memory, tokens: int) -> None:
        rows = inner = outer = listed = 0
        for op in plan.ops:
            if op.kind == "experts":
                size, chosen = op.integer("size"), op.integer("chosen")
                rows, outer = max(rows, tokens * chosen), max(outer, op.out[0].width)
                listed = max(listed, groups.words(tokens * chosen, op.integer("count")))
                inner = max(inner, size * (2 if op.params["gated"] else 1))
        # Operands: (array, start, stride).
        strides = padded(inner, ALIGN), padded(outer, ALIGN)
        self.inner, self.outer = ((memory.array(rows * stride, np.float32), 0, stride) for stride in strides)
        self.groups = memory.array(listed, np.int32)
        self.codes = memory.array(rows * quantize.row_bytes(max(inner, outer)), np.uint8)


class Buffers:
    """For steps of up to `tokens` tokens, and any number of output rows (see `grow`)."""

    def __init__(self, plan: Plan, memory: Memory, tokens: int) -> None:
        self.plan, self.memory = plan, memory
        self.tokens, self.outputs = height(tokens), 0
        self.keep = min(TOP, plan.vocab)
        self.width = -(-plan.context // BLOCK)
        self.strides = [padded(buffer.width, ALIGN) for buffer in plan.buffers]
        self._widest = max((op.inputs[0].width for op in plan.ops if op.kind == "linear"), default=0)
        self.arrays: list[Array] = [None for _ in plan.buffers]
        self.codes: list[Array] = [None, None]
        self._allocate("tokens", self.tokens)
        self.experts = Experts(plan, memory, self.tokens)
        words = steps.words(self.tokens, self.tokens, self.width)
        self.step, self.host_step = memory.array(words, np.int32), memory.pinned(words, np.int32)
        self.fault, self.host_fault, self.no_fault = memory.array(1, np.int64), memory.pinned(1, np.int64), memory.pinned(1, np.int64)
        self.host: dict[int, npt.NDArray[Any]] = {}
        self._pin("tokens", self.tokens)
        self.grow(1)

    def grow(self, outputs: int) -> None:
        """Makes room for so many output rows, in new arrays."""
        wanted, self.outputs = height(outputs), 0  # until all of it is there
        self._allocate("outputs", wanted)
        shapes = {"top_ids": (self.keep, np.int32), "top_values": (self.keep, np.float32), "top_stats": (2, np.float64)}
        self.results = {name: self.memory.array(wanted * width, dtype) for name, (width, dtype) in shapes.items()}
        pieces = top.pieces(self.plan.vocab)
        self.ranks = self.memory.array(wanted * pieces * self.keep, np.int64)
        self.statistics = self.memory.array(wanted * pieces * top.STATISTICS, np.float64)
        self.host_results = {name: self.memory.pinned(wanted * width, dtype) for name, (width, dtype) in shapes.items()}
        self._pin("outputs", wanted)
        self.outputs = wanted

    def _pin(self, kind: str, rows: int) -> None:
        """Memory here for what goes up and comes back of the buffers of token rows or of output rows."""
        for number in {*self.plan.given, *self.plan.taps, self.plan.logits}:
            if self.plan.buffers[number].rows == kind:
                self.host[number] = self.memory.pinned(rows * self.strides[number], np.float32)

    def _allocate(self, kind: str, rows: int) -> None:
        """New arrays for the buffers of token rows or of output rows, and for one of them quantized."""
        for number, buffer in enumerate(self.plan.buffers):
            if buffer.rows == kind:
                self.arrays[number] = self.memory.array(rows * self.strides[number], DTYPES[buffer.dtype])
        self.codes[kind == "outputs"] = self.memory.array(padded(rows, linear.ROOM) * quantize.row_bytes(self._widest), np.uint8)

    def operand(self, slot: Slot) -> tuple[Array, int, int]:
        """(array, start, stride): element (row, column) is array[start + row * stride + column]."""
        return self.arrays[slot.buffer], slot.start, self.strides[slot.buffer]

    def rows(self, buffer: int, count: int) -> npt.NDArray[np.float32]:
        """What came back of a buffer, or goes there: f32 [count, width]."""
        stride = self.strides[buffer]
        return self.host[buffer][: count * stride].reshape(count, stride)[:, : self.plan.buffers[buffer].width]

    def fill(self, batch: Batch, start: int, stop: int, outputs: npt.NDArray[np.int32], most: int) -> None:
        """Takes tokens start .. stop of a batch as the step's input, launched as `most`; outputs: rows counted from `start`."""
        used, owners = np.unique(batch.owners[start:stop], return_inverse=True)
        sequences = [batch.sequences[number].blocks for number in used]
        tables = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
        for row, blocks in zip(tables, sequences, strict=True):
            row[: len(blocks)] = blocks
        tokens, positions = batch.tokens[start:stop], batch.positions[start:stop]
        steps.fill(self.host_step, most, tokens, positions, owners.astype(np.int32), outputs, tables)
        for number in self.plan.given:
            self.rows(number, stop - start)[:] = batch.given[self.plan.buffers[number].name][start:stop]
