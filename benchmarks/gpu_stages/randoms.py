"""Models with random weights, made on the GPU in the time that its memory takes: a block of random bytes goes there once, and is copied
from other starts for each matrix. The numbers are those that weights have: codes of all values, and scales that keep activations' size."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from llmcli.backends.cuda import run as cuda_run
from llmcli.backends.cuda import weights as repacked
from llmcli.backends.cuda.lower import Lowering
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.kv import BLOCK, KVCache
from llmcli.models import decoder
from llmcli.models.spec import Spec
from llmcli.weights.randoms import format_of

DRAWN, DRAWN_DRY = 64 << 20, 1 << 14
"""Bytes of a block of random bytes."""
NORMAL, NORMAL_DRY = 1 << 20, 1 << 12
"""Numbers of a block of normal ones."""


class Source:
    """Random bytes on the GPU. memory: llmcli.backends.cuda.memory.Memory."""

    def __init__(self, memory: Any, dry: bool) -> None:
        self.memory, self._rng, self._normal = memory, np.random.default_rng(0), NORMAL_DRY if dry else NORMAL
        count = DRAWN_DRY if dry else DRAWN
        self._bytes = memory.upload([self._rng.integers(0, 256, count, np.uint8)], count, np.uint8)
        self._blocks: dict[Any, Any] = {}

    def fill(self, out: Any, block: Any = None) -> None:
        """All bytes of a u8 array, from a block: of random bytes, where none is given."""
        source, at = self._bytes if block is None else block, 0
        while at < out.size:
            start = int(self._rng.integers(0, source.size // 512)) * 256
            size = min(out.size - at, source.size - start)
            out[at : at + size].copy_to_device(source[start : start + size], stream=self.memory.stream)
            at += size

    def matrix(self, format: str, rows: int, columns: int, count: int = 1) -> Any:
        """u8: matrices as weights.py lays them out, one after the other."""
        own = repacked.place(format, rows, columns)
        out = self.memory.array(count * own.size, np.uint8)
        for start in range(0, count * own.size, own.size):
            if format in repacked.FLOAT_BYTES:
                self.fill(out[start : start + own.size], self._numbers(format, columns**-0.5, 0.0))
                continue
            self.fill(out[start : start + own.scales])
            codes = formats.get(format).FORMAT.codes or range(-128, 128)
            scales = self._numbers("f16", 0.1, float(columns**-0.5 / np.std(codes)))
            self.fill(out[start + own.scales : start + own.size], scales)
        return out

    def numbers(self, count: int) -> Any:
        """f32: normal ones."""
        out = self.memory.array(count, np.float32)
        self.fill(out.view(np.uint8), self._numbers("f32", 1.0, 0.0))
        return out

    def halves(self, out: Any) -> None:
        """A u8 array as normal numbers in f16."""
        self.fill(out, self._numbers("f16", 1.0, 0.0))

    def _numbers(self, format: str, deviation: float, around: float) -> Any:
        """A block of normal numbers, f32, f16 or bf16. around: their mean, which the deviation is then a part of."""
        key = format, deviation, around
        if key not in self._blocks:
            values = self._rng.standard_normal(self._normal, np.float32) * np.float32(deviation)
            values = (1 + values) * np.float32(around) if around else values
            if format == "bf16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            data = (values.astype(np.float16) if format == "f16" else values).view(np.uint8)
            self._blocks[key] = self.memory.upload([data], data.size, np.uint8)
        return self._blocks[key]


class Model:
    """A runner on GPU 0 whose weights and cache are random; `text(n)`: a text with n tokens behind it that nobody computed."""

    def __init__(self, spec: Spec, quantization: str, context: int, most_tokens: int, dry: bool) -> None:
        self.plan = decoder.plan(spec, context)
        self.weights = {name: _unread(format_of(weight, quantization), weight.shape) for name, weight in self.plan.weights.items()}
        self.cache = KVCache(self.plan.cache, -(-context // BLOCK) + 1, "f16")
        with _random_weights(dry):
            self.runner = cuda_run.load(self.plan, self.weights, self.cache, most_tokens=most_tokens)
        self.memory = self.runner.store.memory
        with self.memory.errors():
            Source(self.memory, dry).halves(self.runner.store.bytes)
            self.memory.stream.synchronize()
        self.bytes = sum(len(tensor.data) for tensor in self.weights.values())

    def close(self) -> None:
        """Gives the memory back: all of it is needed for the next one."""
        self.runner.close()
        del self.runner, self.cache
        gc.collect()

    def text(self, length: int) -> Any:
        sequence = self.cache.sequence()
        if length:
            sequence.extend(length)
        return sequence


def _unread(format: str, shape: tuple[int, ...]) -> PackedTensor:
    """A tensor of the right size, of which no byte is anywhere."""
    count = math.prod(shape[:-2])
    size = 4 * math.prod(shape) if format == "vector" else count * formats.get(format).size(*shape[-2:])
    return PackedTensor(format, shape, np.broadcast_to(np.zeros(1, np.uint8), (size,)))


@contextmanager
def _random_weights(dry: bool) -> Iterator[None]:
    """Runners that are loaded within have random weights."""

    class Random(Lowering):
        source: Source | None = None

        def _upload(self, tensor: PackedTensor) -> Any:
            self.source = self.source or Source(self.memory, dry)
            if tensor.format == "vector":
                values = 1 + np.random.default_rng(1).standard_normal(math.prod(tensor.shape)).astype(np.float32) * np.float32(0.1)
                return self.memory.upload([values], values.size, np.float32)
            return self.source.matrix(tensor.format, *tensor.shape[-2:], math.prod(tensor.shape[:-2]))

    plain = cuda_run.Lowering
    cuda_run.Lowering = Random  # type: ignore[misc]
    try:
        yield
    finally:
        cuda_run.Lowering = plain  # type: ignore[misc]
