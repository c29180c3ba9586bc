"""Kernels that take two operations at once give the bits of the two kernels, floats and codes, and write nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from caches import LAYER, empty
from steps import F, Operand, Tokens, counts, random

from llmcli.backends.cuda.kernels import quantize
from llmcli.backends.cuda.kernels.attention_decode import attention_merge
from llmcli.backends.cuda.kernels.cache import VIEW, cache_write
from llmcli.backends.cuda.kernels.elementwise import elementwise, elementwise_quantize
from llmcli.backends.cuda.kernels.norm import FEW, norm, norm_quantize
from llmcli.backends.cuda.kernels.rope import rope
from llmcli.backends.cuda.kernels.rope_cache import rope_cache_write
from llmcli.plan import CacheLayer

Array = npt.NDArray[Any]
ROWS = 2


def start(chosen: Any, *args: Any) -> None:
    kernel, grid, block = chosen
    kernel[grid, block](*args)


def no_records(columns: int) -> Array:
    """Room for one row more, and what may not be read before it is written."""
    return np.full((ROWS + 1) * quantize.row_bytes(columns), 0xA5, np.uint8)


def records(step: Array, outputs: int, x: Operand) -> Array:
    """The rows of x by the kernel that only quantizes."""
    found = no_records(x.width)
    start(quantize.launch(ROWS + 1, x.width), step, outputs, *x.args, x.width, found)
    return found


def nothing_written(operand: Operand) -> bool:
    return bool((operand.flat.view(np.int32) == -1).all())


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("columns, outputs", [(75, 0), (300, 1)])
def test_norm_and_quantize(kind: str, columns: int, outputs: int) -> None:
    x, step = random(ROWS, columns) * F(3), counts(5, (1, 4)) if outputs else counts(ROWS)
    arrays = (random(columns, seed=2), 1, random(columns, seed=3), 1)
    fault, out = np.zeros(1, np.int64), Operand.empty(ROWS, columns)
    start(norm(kind, ROWS, 1), step, outputs, fault, 7, *Operand.of(x).args, *arrays, *out.args, columns, 1e-5)
    expected, codes = out.taken(ROWS), records(step, outputs, out)
    for most, in_place, kept in ((ROWS, False, 0), (FEW + 1, False, 1), (ROWS, True, 1)):
        source, found = Operand.of(x), no_records(columns)
        target = source if in_place else Operand.empty(ROWS, columns, 5)
        chosen = norm_quantize(kind, most, columns, in_place)
        start(chosen, step, outputs, fault, 7, *source.args, *arrays, *target.args, columns, 1e-5, kept, found)
        np.testing.assert_array_equal(found, codes)
        if kept:
            np.testing.assert_array_equal(target.taken(ROWS), expected)
        else:
            assert nothing_written(target)
    assert fault[0] == 0
    x[1, -1] = np.nan
    chosen = norm_quantize(kind, ROWS, columns, False)
    start(chosen, step, outputs, fault, 7, *Operand.of(x).args, *arrays, *out.args, columns, 1e-5, 0, no_records(columns))
    assert fault[0] == (7 << 32) + (4 if outputs else 1) + 1


def test_several_blocks_share_a_row_where_they_may() -> None:
    assert norm_quantize("rms", 1, 4096, False)[1][0] > 1
    assert norm_quantize("rms", 1, 4096, True)[1] == (1, 1)  # one block might write what another still reads
    assert norm_quantize("rms", FEW + 1, 4096, False)[1] == (1, FEW + 1)


@pytest.mark.parametrize("name, columns", [("silu_multiply", 300), ("gelu", 31)])
@pytest.mark.parametrize("kept", [0, 1])
def test_activation_and_quantize(name: str, columns: int, kept: int) -> None:
    both = random(ROWS, 2 * columns)
    step, out = counts(ROWS), Operand.empty(ROWS, columns)

    def operands(inner: Operand) -> tuple[Any, ...]:
        flat, at, stride = inner.args
        return flat, at, stride, flat, at + columns, stride

    start(elementwise(name, ROWS, columns), step, 0, *operands(Operand.of(both)), *out.args, columns, 0.0)
    expected, codes = out.taken(ROWS), records(step, 0, out)
    inner, found = Operand.of(both), no_records(columns)
    start(elementwise_quantize(name, ROWS + 1, columns), step, 0, *operands(inner), *inner.args, columns, 0.0, kept, found)
    np.testing.assert_array_equal(found, codes)
    written = inner.taken(ROWS)
    np.testing.assert_array_equal(written[:, :columns], expected if kept else both[:, :columns])
    np.testing.assert_array_equal(written[:, columns:], both[:, columns:])


@pytest.mark.parametrize("heads, size", [(3, 32), (1, 160)])
@pytest.mark.parametrize("kept", [0, 1])
def test_merging_attention_and_quantizing(heads: int, size: int, kept: int) -> None:
    units, step = 3, counts(ROWS, positions=[5, 300])
    vectors, extents = random((ROWS + 1) * heads * units * size), abs(random((ROWS + 1) * heads * units * 2, seed=2))
    out, to, found = Operand.empty(ROWS, heads * size), Operand.empty(ROWS, heads * size), no_records(heads * size)
    last = size, 0, np.array([0.5] * heads, F), 1
    start(attention_merge(size, ROWS + 1, heads), step, vectors, extents, units, *out.args, *last)
    start(attention_merge(size, ROWS + 1, heads, True), step, vectors, extents, units, *to.args, *last, kept, found)
    np.testing.assert_array_equal(found, records(step, 0, out))
    if kept:
        np.testing.assert_array_equal(to.taken(ROWS), out.taken(ROWS))
    else:
        assert nothing_written(to)


@pytest.mark.parametrize("dtype", ["f16", "f32", "int8"])
@pytest.mark.parametrize("interleaved, size, turned, kv_heads", [(False, 40, 40, 1), (True, 20, 12, 2)])
def test_rope_and_cache_write(dtype: str, interleaved: bool, size: int, turned: int, kv_heads: int) -> None:
    heads, owners, positions = 5 + kv_heads, [0, 1, 1], [17, 255, 256]
    tokens = Tokens.of([CacheLayer(2, 8), CacheLayer(kv_heads, size)], (30, 260), "f32" if dtype == "int8" else dtype)
    step, qkv = tokens.device(owners, positions), random(3, (heads + kv_heads) * size)
    pairs, frequencies = turned // 2, (10000.0 ** -(np.arange(turned // 2) / (turned // 2))).astype(F)

    def written(together: bool, qkv: Array) -> tuple[Array, Array, int]:
        x, (data, layout), fault = Operand.of(qkv), empty(tokens.cache, dtype), np.zeros(1, np.int64)
        flat, at, stride = x.args
        value, place = (flat, at + heads * size, stride), (data.view(VIEW[dtype]), layout.starts[LAYER], layout.block_bytes)
        if together:
            chosen = rope_cache_write(size, pairs, dtype, interleaved, 5, heads, kv_heads)
            start(chosen, step, fault, 9, *x.args, heads, frequencies, 1.1, *value, *place, kv_heads)
        else:
            start(rope(interleaved, 5, heads, pairs), step, *x.args, heads, size, pairs, frequencies, 1.1)
            key = flat, at + (heads - kv_heads) * size, stride
            start(cache_write(size, dtype, 5, kv_heads), step, fault, 9, *key, *value, *place)
        return x.taken(3), data, int(fault[0])

    for one, other in zip(written(True, qkv), written(False, qkv), strict=True):
        np.testing.assert_array_equal(one, other)
    qkv[1, (heads - 1) * size] = np.inf
    assert written(True, qkv)[2] == written(False, qkv)[2] == (9 << 32) + 1 + 1
