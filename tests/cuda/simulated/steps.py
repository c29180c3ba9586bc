"""Steps for kernel tests: the device's `step` array, and the reference backend's Step of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch
from llmcli.backends.cuda.kernels import step as layout
from llmcli.backends.cuda.kernels.platform import cuda, kernel
from llmcli.backends.reference.step import Step
from llmcli.kv import BLOCK, KVCache, Sequence
from llmcli.plan import CacheLayer

Array = npt.NDArray[Any]
F = np.float32


@dataclass
class Tokens:
    """Some tokens of some sequences of one cache."""

    cache: KVCache
    sequences: list[Sequence]

    @staticmethod
    def of(layers: list[CacheLayer], lengths: tuple[int, ...], dtype: str = "f32", spare: int = 2) -> Tokens:
        cache = KVCache(layers, sum(-(-n // BLOCK) for n in lengths) + spare, dtype)
        tokens = Tokens(cache, [cache.sequence() for _ in lengths])
        for sequence, length in zip(tokens.sequences, lengths, strict=True):
            sequence.extend(length)
        return tokens

    def reference(self, owners: Any, positions: Any, outputs: Any = ()) -> Step:
        owners, positions, outputs = (np.array(x, np.int32) for x in (owners, positions, outputs))
        return Step(Batch(np.zeros(len(owners), np.int32), positions, tuple(self.sequences), owners, outputs), self.cache)

    def device(self, owners: Any, positions: Any, outputs: Any = (), room: int = 3) -> Array:
        """What is not said is -1: no kernel may use it. room: how many more tokens there would be room for."""
        most, width = len(owners) + room, max(len(s.blocks) for s in self.sequences) + 1
        tables = np.full((len(self.sequences), width), -(10**6), np.int32)
        for row, sequence in zip(tables, self.sequences, strict=True):
            row[: len(sequence.blocks)] = sequence.blocks
        step = np.full(layout.words(most, len(tables), width), -1, np.int32)
        owners, positions, outputs = (np.array(x, np.int32) for x in (owners, positions, outputs))
        layout.fill(step, most, np.zeros(len(owners), np.int32), positions, owners, outputs, tables)
        return step


def counts(tokens: int, outputs: tuple[int, ...] = (), positions: Any = None) -> Array:
    """A step of one sequence, for kernels that look at neither caches nor sequences."""
    step = np.full(layout.words(tokens + 3, 1, 1), -1, np.int32)
    positions = np.arange(tokens) if positions is None else positions
    zeros = np.zeros(tokens, np.int32)
    layout.fill(step, tokens + 3, zeros, positions, zeros, np.array(outputs, np.int32), np.zeros((1, 1), np.int32))
    return step


@dataclass
class Operand:
    """Rows in a flat array, at a start and a stride, with NaN (or -1) around them and below them."""

    flat: Array
    start: int
    stride: int
    width: int

    @staticmethod
    def of(rows: Array, start: int = 3, gap: int = 2, more: int = 2) -> Operand:
        count, width = rows.shape
        made = Operand.empty(count, width, start, gap, more, rows.dtype)
        made.rows(count)[:] = rows
        return made

    @staticmethod
    def empty(count: int, width: int, start: int = 3, gap: int = 2, more: int = 2, dtype: Any = F) -> Operand:
        flat = np.full(start + (count + more) * (width + gap), 255, np.uint8).repeat(4).view(dtype)
        return Operand(flat, start, width + gap, width)

    @property
    def args(self) -> tuple[Array, int, int]:
        return self.flat, self.start, self.stride

    def rows(self, count: int) -> Array:
        return self.flat[self.start : self.start + count * self.stride].reshape(count, self.stride)[:, : self.width]

    def taken(self, count: int) -> Array:
        """The rows, once nothing else is found to be written."""
        inside = np.zeros(len(self.flat), bool)
        inside[self.start : self.start + count * self.stride].reshape(count, self.stride)[:, : self.width] = True
        assert (self.flat[~inside].view(np.int32) == -1).all()
        return self.rows(count).copy()


def random(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F)


def applied(function: Any, *columns: Any, dtype: Any = F) -> Array:
    """What a device function of one or three numbers says of each row of these columns, which have its arguments' types."""

    @kernel
    def of_one(out, a):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < len(out):
            out[i] = function(a[i])

    @kernel
    def of_three(out, a, b, c):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < len(out):
            out[i] = function(a[i], b[i], c[i])

    out = np.zeros(len(columns[0]), dtype)
    {1: of_one, 3: of_three}[len(columns)][-(-len(out) // 32), 32](out, *columns)
    return out
