"""Attention and cache writing, against the reference backend, and bit for bit against themselves.

Whatever nobody has written is NaN: outputs, scratch memory, and the cache beyond a text.
"""

from __future__ import annotations

import numpy as np
import pytest
from caches import LAYER, Shape, Texts, empty, on_device
from steps import F, Operand, Tokens, counts, random

from llmcli.backends.cuda.kernels import halves
from llmcli.backends.cuda.kernels.attention_decode import attention_merge
from llmcli.backends.cuda.kernels.cache import VIEW, cache_write
from llmcli.backends.reference import attention as plain
from llmcli.kv import BLOCK
from llmcli.plan import CacheLayer

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered")  # kernels know of no warnings
SHAPES = {
    "grouped": Shape(3, 1, 8),
    "f32, odd size": Shape(2, 1, 20, "f32"),
    "wide": Shape(1, 1, 40),
    "window": Shape(2, 1, 8, window=70),
    "softcap and slopes": Shape(4, 2, 8, softcap=2.0, alibi=True),
    "sinks and window, f32": Shape(2, 1, 8, "f32", sinks=True, window=130),
    "codes, odd size": Shape(2, 1, 20, "int8"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention(shape: Shape) -> None:
    texts = Texts.of(shape, (141, 3)).upload()
    owners, positions = [0, 0, 1, 1], [139, 140, 0, 2]
    query = random(4, shape.heads * shape.size, seed=9)
    together = texts.attend(owners, positions, query, prompt=True)
    np.testing.assert_allclose(together, texts.expected(owners, positions, query), rtol=2e-5, atol=2e-6)
    for t in (1, 2):
        alone = texts.attend(owners[t : t + 1], positions[t : t + 1], query[t : t + 1], prompt=False)
        np.testing.assert_array_equal(alone[0].view(np.int32), together[t].view(np.int32))


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e30])
def test_queries_of_any_size(scale: float) -> None:
    """Beyond what an f16 can hold: they are split after a power of two is taken out."""
    shape = Shape(2, 1, 20, scale=0.4 / scale)
    texts = Texts.of(shape, (40,)).upload()
    query = random(2, 40, seed=3) * F(scale)
    query[1, 20:] = 0
    found = texts.attend([0, 0], [38, 39], query, prompt=True)
    np.testing.assert_allclose(found, texts.expected([0, 0], [38, 39], query), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(texts.attend([0], [39], query[1:], prompt=False)[0], found[1])


def test_halves_of_heads_that_are_too_large_for_the_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "LARGEST", 7)
    test_attention(Shape(3, 1, 8, window=70))


@pytest.mark.parametrize("shares", [1, 3])
def test_one_token_at_every_kind_of_position(shares: int) -> None:
    texts = Texts.of(Shape(1, 1, 8), (300,)).upload()
    for position in (0, 31, 127, 128, 299):
        query = random(1, 8, seed=position)
        found = texts.attend([0], [position], query, prompt=False, shares=shares)
        np.testing.assert_allclose(found, texts.expected([0], [position], query), rtol=2e-5, atol=2e-6)


def test_merging_more_units_than_a_block_has_threads() -> None:
    position, heads, size = 128 * 300 + 5, 2, 8
    vectors, extents = random(heads, 302, size), random(heads, 302, 2, seed=2)
    extents[..., 0] = extents[..., 0] * F(5) + np.linspace(-20, 20, 302, dtype=F)
    extents[..., 1] = abs(extents[..., 1]) + F(1)
    vectors[:, 301], extents[:, 301] = np.nan, np.nan
    out, sinks = Operand.empty(1, heads * size), np.array([3, 30], F)
    kernel, grid, block = attention_merge(size, 2, heads)
    step = counts(1, positions=[position])
    kernel[grid, block](step, vectors.reshape(-1), extents.reshape(-1), 302, *out.args, size, 0, sinks, 1)
    factors = np.exp(extents[:, :301, 0].astype(np.float64))
    sums = (factors * extents[:, :301, 1]).sum(1) + np.exp(sinks.astype(np.float64))
    expected = (factors[..., None] * vectors[:, :301]).sum(1) / sums[:, None]
    np.testing.assert_allclose(out.taken(1).reshape(heads, size), expected, rtol=2e-5, atol=1e-6)


def test_tokens_of_several_sequences_with_shared_blocks() -> None:
    shape = Shape(2, 1, 8)
    texts = Texts.of(shape, (258,))
    texts.tokens.sequences.append(texts.tokens.sequences[0].fork())
    for number, length in ((1, 261), (0, 260)):
        texts.write(number, length)
    first, second = texts.tokens.sequences
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]
    texts.upload()
    owners, positions = [1, 1, 1, 0, 0], [258, 259, 260, 258, 259]
    query = random(5, 16, seed=4)
    expected = texts.expected(owners, positions, query)
    decoded = texts.attend(owners, positions, query, prompt=False)
    np.testing.assert_allclose(decoded, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(texts.attend(owners, positions, query, prompt=True).view(np.int32), decoded.view(np.int32))


def test_more_query_heads_than_a_block_takes() -> None:
    shape = Shape(11, 1, 8)
    texts = Texts.of(shape, (40,)).upload()
    query = random(1, 88, seed=2)
    found = texts.attend([0], [39], query, prompt=False)
    np.testing.assert_allclose(found, texts.expected([0], [39], query), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(texts.attend([0], [39], query, prompt=True), found)


@pytest.mark.parametrize("dtype", ["f16", "f32", "int8"])
@pytest.mark.parametrize("size", [16, 20])
def test_cache_write(dtype: str, size: int) -> None:
    tokens = Tokens.of([CacheLayer(2, 8), CacheLayer(3, size)], (30, 260), "f32" if dtype == "int8" else dtype)
    tokens.cache.data[:] = 255
    owners, positions = [0, 1, 1, 1], [17, 3, 255, 256]
    key, value = random(4, 3 * size, seed=1), random(4, 3 * size, seed=2) * F(50)
    plain.cache_write(tokens.reference(owners, positions), key, value, layer=LAYER)
    expected, layout = on_device(tokens.cache, dtype)
    data, fault = empty(tokens.cache, dtype)[0], np.zeros(1, np.int64)
    kernel, grid, block = cache_write(size, dtype, 6, 3)
    place = (data.view(VIEW[dtype]), layout.starts[LAYER], layout.block_bytes)
    kernel[grid, block](tokens.device(owners, positions), fault, 9, *Operand.of(key).args, *Operand.of(value).args, *place)
    # columns beyond the head's are zero where a key is written, and nothing where none is
    assert fault[0] == 0 and ((data == expected) | ((data == 255) & (expected == 0))).all()


@pytest.mark.parametrize("dtype, bad", [("f16", 65520.0), ("f16", np.nan), ("f32", np.inf), ("int8", np.nan), ("int8", 2e18)])
def test_what_a_cache_cannot_hold_is_a_fault(dtype: str, bad: float) -> None:
    tokens = Tokens.of([CacheLayer(1, 8), CacheLayer(1, 16)], (9,), "f32")
    (data, layout), fault = empty(tokens.cache, dtype), np.zeros(1, np.int64)
    key, value = random(2, 16), random(2, 16)
    value[1, 15] = bad
    kernel, grid, block = cache_write(16, dtype, 2, 1)
    place = (data.view(VIEW[dtype]), layout.starts[LAYER], layout.block_bytes)
    kernel[grid, block](tokens.device([0, 0], [0, 1]), fault, 9, *Operand.of(key).args, *Operand.of(value).args, *place)
    assert fault[0] == (9 << 32) + 1 + 1


def test_the_layout_needs_no_room_between_layers() -> None:
    cache = Tokens.of([CacheLayer(2, 20), CacheLayer(1, 16)], (1,), "f16").cache
    layout = empty(cache, "f16")[1]
    assert layout.starts == (0, 2 * BLOCK * (24 + 20) * 2) and layout.block_bytes == layout.starts[1] + BLOCK * 32 * 2
    assert all(start % 16 == 0 for start in (*layout.starts, layout.block_bytes))
