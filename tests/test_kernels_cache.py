"""Turning queries and keys and writing the cache in one kernel: the bits of both kernels apart, and the numbers of the reference."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attention_calls import LAYER, Array, F, Shape, Texts
from kernel_calls import address, call, kernel, only_x86, pass_as
from llmcli.backends.cpu.records import CACHE_WRITE, ROPE, ROPE_WRITE, bits, pack
from llmcli.backends.reference.rope import rope
from llmcli.kv import BLOCK, DTYPES, KVCache

LENGTHS = (300, 20)
OWNERS, POSITIONS = [0, 1, 0, 0, 1], [255, 19, 256, 299, 3]
OP, FACTOR, GAP = 21, 1.25, 5
SIZES = [(8, 2), (21, 14), (64, 64), (80, 36), (100, 96)]
"""Of a head, and how much of it is turned."""


class Step:
    """Five tokens of two texts, their rows [queries | keys | values] and what is to be done with them."""

    def __init__(self, shape: Shape, turned: int) -> None:
        self.shape, self.texts, self.error = shape, Texts.of(shape, LENGTHS), np.zeros(1, np.int64)
        self.frequencies = 100.0 ** -(np.arange(turned // 2) / (turned // 2))
        self.width = (shape.heads + 2 * shape.kv_heads) * shape.size
        rng = np.random.default_rng(3)
        self.rows = np.full((len(OWNERS), self.width + GAP), np.nan, F)
        self.rows[:, : self.width] = rng.standard_normal((len(OWNERS), self.width)) * np.exp(rng.uniform(-3, 3, (len(OWNERS), 1)))
        owners, positions = np.array(OWNERS, np.int32), np.array(POSITIONS, np.int32)
        self.header, self.keep = self.texts.header(owners, positions, self.error)
        self.both = shape.heads + shape.kv_heads
        self.turn: dict[str, Any] = {"heads": self.both, "head_size": shape.size, "size": turned}

    def records(self) -> tuple[dict[str, int], dict[str, int]]:
        """The fields of ROPE and of CACHE_WRITE."""
        x, stride, head = address(self.rows), self.rows.strides[0], {"header": address(self.header)}
        key = x + 4 * self.shape.heads * self.shape.size
        value = key + 4 * self.shape.kv_heads * self.shape.size
        place = {"key": key, "key_stride": stride, "value": value, "value_stride": stride}
        turn = {"x": x, "x_stride": stride, "frequencies": address(self.frequencies), "factor": bits(FACTOR)}
        return head | self.turn | turn, head | place | self.texts.place() | {"op": OP}

    def together(self, pairs: str) -> None:
        turn, write = self.records()
        args = pack(ROPE_WRITE, **turn, **{f"write_{name}": value for name, value in write.items()})
        call(kernel("cache.rope_write", self.shape.dtype, pairs), args, reversed(range(len(OWNERS))))

    def apart(self, pairs: str) -> None:
        turn, write = self.records()
        call(kernel(f"rope.{pairs}"), pack(ROPE, **turn), range(len(OWNERS)))
        call(kernel("cache.write", self.shape.dtype), pack(CACHE_WRITE, **write), range(len(OWNERS)))

    def reference(self, pairs: str) -> tuple[Array, KVCache]:
        """Queries and keys turned, and the cache with what was written."""
        cache = KVCache(self.texts.cache.layers, self.texts.cache.blocks, self.shape.dtype)
        cache.data[:] = self.texts.cache.data
        width = self.both * self.shape.size
        step: Any = SimpleNamespace(batch=SimpleNamespace(positions=np.array(POSITIONS, np.int32)))
        about = {"interleaved": pairs == "interleaved", "frequencies": tuple(self.frequencies), "factor": FACTOR}
        turned = rope(step, self.rows[:, :width], **self.turn, **about)
        keys = turned[:, self.shape.heads * self.shape.size :].reshape(len(OWNERS), self.shape.kv_heads, -1)
        values = self.rows[:, width : self.width].reshape(keys.shape)
        for owner, position, key, value in zip(OWNERS, POSITIONS, keys, values, strict=True):
            cache.write(LAYER, self.texts.sequences[owner].blocks[position // BLOCK], position % BLOCK, key, value)
        return turned, cache


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize(("size", "turned"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_cache_write_are_one(dtype: str, size: int, turned: int, pairs: str) -> None:
    shape = Shape(heads=5, kv_heads=3, size=size, dtype=dtype)
    one, two = Step(shape, turned), Step(shape, turned)
    rows, wanted = one.reference(pairs)
    one.together(pairs)
    two.apart(pairs)
    assert np.array_equal(one.rows.view(np.int32), two.rows.view(np.int32))  # queries too, and nothing between rows
    assert np.array_equal(one.texts.cache.data, two.texts.cache.data)
    assert not one.error.any() and not two.error.any()
    scale = abs(rows).max()
    np.testing.assert_allclose(one.rows[:, : rows.shape[1]], rows, rtol=0, atol=1e-6 * scale)
    bound = {"f32": 1e-6, "f16": 1e-3, "int16": 2e-4, "int8": 1e-2}[dtype]
    for block in range(wanted.blocks):
        for found, right in zip(one.texts.cache.read(LAYER, block), wanted.read(LAYER, block), strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=bound * scale)  # what nobody wrote is NaN in both


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_does_not_fit_is_reported(dtype: str, where: str) -> None:
    step = Step(Shape(heads=4, kv_heads=2, size=20, dtype=dtype), 12)
    step.rows[2, -GAP - 1 - (40 if where == "key" else 0)] = np.nan
    step.together("half")
    assert step.error[0] == 1 + (OP << 32) + 2


def test_queries_beyond_a_caches_type_are_no_fault() -> None:
    step = Step(replace(Shape(), dtype="f16"), 64)
    step.rows[:, :64] = 1e30
    step.together("half")
    assert not step.error.any()


def test_they_call_nothing() -> None:
    names = [("cache.rope_write", dtype, pairs) for dtype in DTYPES for pairs in ("half", "interleaved")]
    assert {name: kernel(*name).calls() for name in names} == {name: [] for name in names}


@only_x86
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_on_other_cpus(cpu: str) -> None:
    pass_as(cpu, "are_one and 80 and half", __file__)
