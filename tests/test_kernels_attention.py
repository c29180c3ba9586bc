"""Attention and cache writing of the CPU backend, against plain softmax in float64, and bit for bit against themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attention_calls import LAYER, LENGTHS, F, Shape, Texts, attend, check_bits, expected, last_tokens, queries, write
from kernel_calls import kernel, only_x86, pass_as
from llmcli.backends.cpu import tiles
from llmcli.backends.cpu.tiles import attention_tile
from llmcli.kv import BLOCK, KVCache

SHAPES = {
    "grouped": Shape(),
    "window": Shape(window=100),
    "window longer than a block": Shape(window=300),
    "itself only": Shape(window=1),
    "softcap": Shape(softcap=5.0, scale=1.0),
    "alibi": Shape(alibi=True),
    "sinks": Shape(sinks=True),
    "all at once": Shape(window=40, softcap=3.0, alibi=True, sinks=True),
    "large scores": Shape(scale=30.0),
    "f32, odd head": Shape(heads=4, kv_heads=4, size=80, dtype="f32", alibi=True),
    "small head": Shape(heads=4, kv_heads=2, size=8, window=20),
    "wide heads, all with one key": Shape(heads=48, kv_heads=1, size=256, softcap=5.0, window=300, scale=1 / 16),
    "multi-query": Shape(heads=7, kv_heads=1, size=16, dtype="f32", sinks=True),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_attention_is_softmax_over_what_a_token_sees(shape: Shape) -> None:
    """Texts of all lengths in one step, the last two tokens of each."""
    texts = Texts.of(shape, LENGTHS)
    owners, positions = last_tokens(LENGTHS)
    query = queries(shape, len(owners))
    out = attend(texts, owners, positions, query)
    np.testing.assert_allclose(out, expected(texts, owners, positions, query), rtol=2e-5, atol=2e-6 if shape.scale <= 1 else 5e-4)


def test_a_token_that_sees_only_itself_gets_its_value() -> None:
    shape = SHAPES["itself only"]
    texts = Texts.of(shape, (600,))
    positions = [0, 255, 256, 599]
    out = attend(texts, [0] * 4, positions, queries(shape, 4))
    assert np.array_equal(out, np.repeat(texts.values[0][positions], shape.group, 1))


@pytest.mark.parametrize("name", ["grouped", "all at once", "window longer than a block"])
def test_bits_do_not_depend_on_how_tokens_come_together(name: str) -> None:
    check_bits(SHAPES[name])


@pytest.mark.parametrize("name", ["f32, odd head", "multi-query"])
def test_bits_of_shared_blocks(name: str) -> None:
    shape = SHAPES[name]
    texts = Texts.of(shape, LENGTHS)
    owners, positions = last_tokens(LENGTHS)
    query = queries(shape, len(owners))
    assert np.array_equal(attend(texts, owners, positions, query, shares=3), attend(texts, owners, positions, query))


def test_forks_and_branches() -> None:
    """Two texts with one past, and tokens of both in any order in one step."""
    shape = SHAPES["grouped"]
    texts = Texts.empty(shape, 6)
    texts.add(texts.cache.sequence(), 300, 1)
    fork = texts.sequences[0].fork()
    fork.truncate(290)
    texts.add(fork, 310, 2, after=0)
    owners, positions = [0, 1, 1, 0, 1, 1, 1, 0, 0], [299, 309, 295, 289, 289, 290, 12, 12, 298]
    query = queries(shape, len(owners))
    out = attend(texts, owners, positions, query)
    np.testing.assert_allclose(out, expected(texts, owners, positions, query), rtol=2e-5, atol=2e-6)
    assert np.array_equal(out, attend(texts, owners, positions, query, tokens=1))
    same = queries(shape, 1).repeat(2, 0)
    both = attend(texts, [0, 1], [289, 289], same)
    assert np.array_equal(both[0], both[1])


def test_many_queries_share_a_key() -> None:
    """A group of 40: several register tiles, the last one not full."""
    shape = Shape(heads=40, kv_heads=1, size=16, dtype="f16")
    texts = Texts.of(shape, (270, 3))
    owners, positions = [0, 0, 1, 0, 1], [3, 269, 2, 255, 0]
    query = queries(shape, 5)
    out = attend(texts, owners, positions, query, tokens=2)
    np.testing.assert_allclose(out, expected(texts, owners, positions, query), rtol=2e-5, atol=2e-6)


def test_register_tiles_fit() -> None:
    assert tiles.BLOCK == BLOCK
    for size in (8, 16, 64, 80, 96, 112, 128, 256):
        for count in range(1, 200):
            tile = attention_tile(size, count)
            assert tile.tiles * tile.queries >= count > (tile.tiles - 1) * tile.queries
            assert tile.queries * max(tile.keys, tile.columns) <= 24
            assert 16 % tile.keys == 0 and -(-size // 16) % tile.columns == 0


@pytest.mark.parametrize(("dtype", "size"), [("f16", 80), ("f16", 8), ("f32", 20), ("f32", 16)])
def test_cache_write_puts_keys_and_values_in_their_places(dtype: str, size: int) -> None:
    shape = Shape(kv_heads=3, size=size, dtype=dtype)
    texts = Texts.of(shape, (300, 20))
    owners, positions = [0, 1, 0, 0, 1], [255, 19, 256, 299, 3]
    rng = np.random.default_rng(5)
    key, value = rng.standard_normal((2, 5, 3, size)).astype(F) * np.exp(rng.uniform(-20, 5, (2, 5, 3, size))).astype(F)
    after = texts.cache.data.copy()
    wanted = KVCache(texts.cache.layers, texts.cache.blocks, dtype)
    wanted.data[:] = after
    for t, (owner, position) in enumerate(zip(owners, positions, strict=True)):
        block, within = texts.sequences[owner].blocks[position // BLOCK], position % BLOCK
        wanted.keys(LAYER, block)[:, within // 16, :, within % 16] = key[t]
        wanted.values(LAYER, block)[:, within] = 0
        wanted.values(LAYER, block)[:, within, :size] = value[t]
    assert write(texts, owners, positions, key, value) == 0
    assert np.array_equal(texts.cache.data, wanted.data)


FITS = [("f16", 65504, True), ("f16", 65510, False), ("f16", -np.inf, False), ("f16", np.nan, False), ("f32", 1e38, True)]


@pytest.mark.parametrize(
    ("dtype", "number", "fits"),
    [*FITS, ("f32", np.nan, False), ("int16", 1e17, True), ("int8", np.nan, False), ("int16", -np.inf, False), ("int16", 3e19, False)],
)
@pytest.mark.parametrize("where", ["key", "value"])
def test_cache_write_reports_what_does_not_fit(dtype: str, number: float, fits: bool, where: str) -> None:
    shape = Shape(kv_heads=2, size=20, dtype=dtype)
    texts = Texts.of(shape, (30,))
    given = {name: np.zeros((4, 2, 20), F) for name in ("key", "value")}
    given[where][2, 1, 19] = number
    assert write(texts, [0] * 4, [5, 6, 7, 8], **given) == (0 if fits else 1 + (21 << 32) + 2)


def test_attention_kernels_call_nothing() -> None:
    names = [("attention.rows", 64, "f16", 3, 8), ("attention.shared", 64, "f16", 3), ("cache.write", "f16"), ("cache.write", "f32")]
    assert {name: kernel(*name).calls() for name in names} == {name: [] for name in names}


FOR_OTHERS = {
    "haswell": "sees and small",
    "x86-64": "(sees and small) or (write_puts and 80) or exp or (activations and silu) or (rope and 20) or (top and 257)",
}


@only_x86
@pytest.mark.parametrize("cpu", FOR_OTHERS)
def test_other_cpus(cpu: str) -> None:
    """Some of these tests and of the elementwise ones: with 16 registers, and with neither fused multiply-add nor f16."""
    files = [__file__, str(Path(__file__).with_name("test_kernels_elementwise.py"))]
    pass_as(cpu, FOR_OTHERS[cpu], *files)
