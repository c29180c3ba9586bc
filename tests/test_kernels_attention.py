"""Attention and cache writing of the CPU backend, against plain softmax in float64, and bit for bit against themselves.

Whatever nobody has written is NaN: outputs, cache positions beyond a text, and scratch memory, which ends at canaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_calls import address, header, kernel, only_x86, run_as
from llmcli.backends.cpu import target, tiles
from llmcli.backends.cpu.records import ATTENTION, CACHE_WRITE, SHARED_ATTENTION, bits, pack
from llmcli.backends.cpu.tiles import attention_tile
from llmcli.kv import BLOCK, CODES, KVCache, Sequence
from llmcli.plan import CacheLayer

Array = npt.NDArray[Any]
F = np.float32
LENGTHS = (1, 15, 16, 17, 255, 256, 257, 600)
LAYER = 1
"""Of two: so that offsets between layers count."""
CANARY = 0x5A


@dataclass(frozen=True)
class Shape:
    """What an attention operation is."""

    heads: int = 9
    kv_heads: int = 3
    size: int = 64
    dtype: str = "f16"
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    scale: float = 0.125

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def slopes(self) -> Array | None:
        return (2.0 ** -np.arange(1, self.heads + 1)).astype(F) if self.alibi else None

    @property
    def sink_logits(self) -> Array | None:
        return np.linspace(-3, 4, self.heads).astype(F) if self.sinks else None


@dataclass
class Texts:
    """Sequences in one cache, and what was written for each position: keys and values f32 [length, kv_heads, D]."""

    shape: Shape
    cache: KVCache
    sequences: list[Sequence] = field(default_factory=list)
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @staticmethod
    def empty(shape: Shape, blocks: int) -> Texts:
        layers = [CacheLayer(2, 24), CacheLayer(shape.kv_heads, shape.size), CacheLayer(1, 8)]
        cache = KVCache(layers, blocks, shape.dtype)
        cache.data[:] = 0xFF  # NaN
        return Texts(shape, cache)

    @staticmethod
    def of(shape: Shape, lengths: tuple[int, ...], seed: int = 0) -> Texts:
        texts = Texts.empty(shape, sum(-(-n // BLOCK) for n in lengths))
        for number, length in enumerate(lengths):
            texts.add(texts.cache.sequence(), length, seed + number)
        return texts

    def add(self, sequence: Sequence, length: int, seed: int, after: int | None = None) -> None:
        """A sequence with random keys and values written up to `length`; after: the text that it continues."""
        rng, start = np.random.default_rng(seed), sequence.length
        sequence.extend(length - start)
        new = rng.standard_normal((2, length - start, self.shape.kv_heads, self.shape.size)).astype(F)
        before = (self.keys[after][:start], self.values[after][:start]) if after is not None else (new[0, :0], new[1, :0])
        for position in range(start, length):
            block, within = sequence.blocks[position // BLOCK], position % BLOCK
            if self.shape.dtype not in CODES:
                self.cache.values(LAYER, block)[:, within] = 0
            self.cache.write(LAYER, block, within, *new[:, position - start])
        stored = zip(*(self.cache.read(LAYER, block) for block in sequence.blocks), strict=True)
        keys, values = (np.concatenate(parts, 1).swapaxes(0, 1)[start:length] for parts in stored)
        self.sequences.append(sequence)
        self.keys.append(np.concatenate([before[0], keys]))
        self.values.append(np.concatenate([before[1], values]))

    def header(self, owners: Array, positions: Array, error: Array | None = None) -> tuple[Array, list[Array]]:
        """The step's header, and what it points to."""
        longest = max(len(s.blocks) for s in self.sequences)
        tables = np.full((len(self.sequences), longest + 1), 10**6, np.int32)
        for row, sequence in zip(tables, self.sequences, strict=True):
            row[: len(sequence.blocks)] = sequence.blocks
        fields = {"positions": address(positions), "owners": address(owners), "tables": address(tables), "error": address(error)}
        return header(tokens=len(owners), table_stride=tables.strides[0], **fields), [tables, owners, positions]

    def place(self) -> dict[str, int]:
        """The cache's fields in a record."""
        layer = self.cache.layers[LAYER]
        return {
            "cache": address(self.cache.data) + self.cache.layer_offsets[LAYER],
            "block_bytes": self.cache.block_bytes,
            "head_bytes": self.cache.head_bytes(layer),
            "key_bytes": self.cache.key_bytes(layer),
            "kv_heads": layer.kv_heads,
            "head_size": layer.head_size,
        }


class Guarded:
    """Memory filled with NaN that must not be left: canaries follow."""

    def __init__(self, size: int) -> None:
        self.size = size
        raw = np.full(size + 256, 0xFF, np.uint8)
        self.data = raw[-raw.ctypes.data % 64 :]
        self.data[size:] = CANARY

    def check(self) -> None:
        assert (self.data[self.size :] == CANARY).all()


def attend(texts: Texts, owners: Any, positions: Any, query: Array, tokens: int = 8, shares: int = 0) -> Array:
    """The output [T, heads, D], from attention.rows with up to `tokens` tokens a chunk, or from attention.shared."""
    shape, count = texts.shape, len(owners)
    head, keep = texts.header(np.array(owners, np.int32), np.array(positions, np.int32))
    width = shape.heads * shape.size
    x = np.full((count, width + 3), np.nan, F)
    x[:, :width] = query.reshape(count, -1)
    out = np.full((count, width + 5), np.nan, F)
    tile = attention_tile(shape.size, shape.group * (1 if shares else tokens))
    scratch = Guarded(2 * tile.scratch_bytes)
    slopes, sinks = shape.slopes, shape.sink_logits
    fields = {
        **texts.place(),
        "header": address(head),
        "query": address(x),
        "query_stride": x.strides[0],
        "out": address(out),
        "out_stride": out.strides[0],
        "heads": shape.heads,
        "scale": bits(shape.scale),
        "window": shape.window,
        "softcap": bits(shape.softcap),
        "slopes": address(slopes),
        "sinks": address(sinks),
        "scratch": address(scratch.data),
        "scratch_bytes": tile.scratch_bytes,
    }
    chunks = -(-count // tokens) * shape.kv_heads
    if shares:
        parts_bytes = max(len(s.blocks) for s in texts.sequences) * tile.block_bytes
        parts, counters = Guarded(parts_bytes * count * shape.kv_heads), np.zeros(count * shape.kv_heads, np.int64)
        fields |= {"shares": shares, "parts": address(parts.data), "parts_bytes": parts_bytes, "counters": address(counters)}
        chunks = count * shape.kv_heads * shares
        run, args = kernel("attention.shared", shape.size, shape.dtype, shape.group), pack(SHARED_ATTENTION, **fields)
    else:
        run, args = kernel("attention.rows", shape.size, shape.dtype, shape.group, tokens), pack(ATTENTION, **fields)
    for chunk in reversed(range(chunks)):
        run(args, chunk, chunk % 2)
    scratch.check()
    assert np.isnan(out[:, width:]).all() and keep
    if shares:
        parts.check()
        assert not counters.any()
    return out[:, :width].reshape(count, shape.heads, shape.size)


def expected(texts: Texts, owners: Any, positions: Any, query: Array) -> Array:
    """The same in float64, obviously."""
    shape, out = texts.shape, np.empty(query.shape)
    for t, (owner, position) in enumerate(zip(owners, positions, strict=True)):
        first = max(0, position + 1 - shape.window) if shape.window else 0
        for h in range(shape.heads):
            keys = texts.keys[owner][first : position + 1, h // shape.group].astype(float)
            values = texts.values[owner][first : position + 1, h // shape.group].astype(float)
            scores = keys @ query[t, h].astype(float) * shape.scale
            if shape.softcap:
                scores = shape.softcap * np.tanh(scores / shape.softcap)
            if shape.slopes is not None:
                scores += shape.slopes[h] * (np.arange(first, position + 1) - position)
            sink = -np.inf if shape.sink_logits is None else float(shape.sink_logits[h])
            top = max(scores.max(), sink)
            weights = np.exp(scores - top)
            out[t, h] = weights @ values / (weights.sum() + np.exp(sink - top))
    return out


def queries(shape: Shape, count: int, seed: int = 99) -> Array:
    return np.random.default_rng(seed).standard_normal((count, shape.heads, shape.size)).astype(F)


def last_tokens(lengths: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Owners and positions of the last two tokens of each text."""
    pairs = [(i, p) for i, n in enumerate(lengths) for p in range(max(0, n - 2), n)]
    return [i for i, _ in pairs], [p for _, p in pairs]


def expected_of_codes(texts: Texts, owner: int, position: int, query: Array) -> Array:
    """One token's output [heads, D] over a cache of codes in float64, but for queries and a block's weights rounded to codes."""
    shape, most, out = texts.shape, CODES["int16"], np.zeros(query.shape)
    first = max(0, position + 1 - shape.window) if shape.window else 0
    for h in range(shape.heads):
        sink = -np.inf if shape.sink_logits is None else float(shape.sink_logits[h])
        q = query[h].astype(float)
        q = np.rint(q * (most / np.linalg.norm(q))) * (np.linalg.norm(q) / most)
        scores = texts.keys[owner][:, h // shape.group].astype(float) @ q * shape.scale
        scores = shape.softcap * np.tanh(scores / shape.softcap) if shape.softcap else scores
        if shape.slopes is not None:
            scores += shape.slopes[h] * (np.arange(len(scores)) - position)
        top = max(sink, scores[first : position + 1].max())
        whole = np.exp(sink - top)
        for block, number in enumerate(texts.sequences[owner].blocks):
            start, end = max(first, block * BLOCK), min(position + 1, (block + 1) * BLOCK)
            if start < end:
                weights = np.exp(scores[start:end] - top)
                scales = texts.cache.scales(LAYER, number)[h // shape.group, 1, start - block * BLOCK : end - block * BLOCK].astype(float)
                factor = most / max((weights * scales).sum(), 1e-300)
                codes = np.rint(weights * scales * factor)
                out[h] += codes / (factor * scales) @ texts.values[owner][start:end, h // shape.group].astype(float)
                whole += weights.sum()
        out[h] /= whole
    return out


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
OF_CODES = {
    "grouped": Shape(dtype="int16"),
    "all at once": Shape(window=40, softcap=3.0, alibi=True, sinks=True, dtype="int16"),
    "window, odd head": Shape(heads=4, kv_heads=2, size=21, window=300, dtype="int16"),
    "8 bits": Shape(dtype="int8"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_attention_is_softmax_over_what_a_token_sees(shape: Shape) -> None:
    """Texts of all lengths in one step, the last two tokens of each."""
    texts = Texts.of(shape, LENGTHS)
    owners, positions = last_tokens(LENGTHS)
    query = queries(shape, len(owners))
    out = attend(texts, owners, positions, query)
    np.testing.assert_allclose(out, expected(texts, owners, positions, query), rtol=2e-5, atol=2e-6 if shape.scale <= 1 else 5e-4)


BITS_OF_CODES = [OF_CODES[name] for name in ("grouped", "all at once", "window, odd head", "8 bits")]


@pytest.mark.parametrize("shape", OF_CODES.values(), ids=list(OF_CODES))
def test_attention_over_codes(shape: Shape) -> None:
    """As it is defined, and as close to plain softmax as 15 bits of queries and of weights are. The first rounds few codes otherwise."""
    texts = Texts.of(shape, LENGTHS)
    owners, positions = last_tokens(LENGTHS)
    query = queries(shape, len(owners))
    out = attend(texts, owners, positions, query)
    defined = np.array([expected_of_codes(texts, o, p, q) for o, p, q in zip(owners, positions, query, strict=True)])
    np.testing.assert_allclose(out, defined, rtol=0, atol=3e-4)
    assert np.linalg.norm(out - defined) < 1e-4 * np.linalg.norm(defined)
    plain = expected(texts, owners, positions, query)
    assert np.linalg.norm(out - plain) < 5e-4 * np.linalg.norm(plain)


def test_integers_at_their_limits() -> None:
    """Everything in one column, or the same everywhere, with all signs alike: products add up to what 32 bits hold, and no further."""
    shape = Shape(heads=2, kv_heads=1, size=256, dtype="int16", scale=1e-3)
    texts = Texts.of(shape, (256,))
    for position in range(256):
        key = np.ones((1, 256), F) if position % 2 else np.eye(1, 256, dtype=F) * 16
        texts.cache.write(LAYER, texts.sequences[0].blocks[0], position, key, np.full((1, 256), 3, F))
        texts.keys[0][position], texts.values[0][position] = key, 3
    query = np.stack([np.full(256, 5, F), np.eye(1, 256, dtype=F)[0] * 80])[None]
    np.testing.assert_allclose(attend(texts, [0], [255], query), expected(texts, [0], [255], query), rtol=1e-4)


def test_nothing_in_codes() -> None:
    """Keys, values and queries of zeros: all keys weigh the same, and no number is divided by zero."""
    shape = Shape(dtype="int16")
    texts = Texts.of(shape, (20,))
    for position in range(20):
        zero = np.zeros((3, 64), F)
        texts.cache.write(
            LAYER, texts.sequences[0].blocks[0], position, zero if position < 10 else zero + 1, zero if position < 19 else zero + 20
        )
    found = attend(texts, [0, 0], [9, 19], np.stack([queries(shape, 1)[0], np.zeros((9, 64), F)]))
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 1, rtol=1e-4)


def test_a_token_that_sees_only_itself_gets_its_value() -> None:
    shape = SHAPES["itself only"]
    texts = Texts.of(shape, (600,))
    positions = [0, 255, 256, 599]
    out = attend(texts, [0] * 4, positions, queries(shape, 4))
    assert np.array_equal(out, np.repeat(texts.values[0][positions], shape.group, 1))


@pytest.mark.parametrize("shape", [*(SHAPES[name] for name in ("grouped", "all at once", "window longer than a block")), *BITS_OF_CODES])
def test_bits_do_not_depend_on_how_tokens_come_together(shape: Shape) -> None:
    """One token at a time, or 2, 7, 8 or 600 together, in chunks of 1 or 8, with the text's blocks shared or not."""
    texts = Texts.of(shape, (600,))
    query = queries(shape, 600)
    whole = attend(texts, [0] * 600, range(600), query)
    assert not np.isnan(whole).any()
    for start in (0, 14, 250, 509, 592):
        for count in (1, 2, 7, 8):
            positions = range(start, start + count)
            some = attend(texts, [0] * count, positions, query[start : start + count])
            assert np.array_equal(some, whole[start : start + count]), (start, count)
        positions = range(start, start + 3)
        assert np.array_equal(attend(texts, [0] * 3, positions, query[start : start + 3], tokens=1), whole[start : start + 3])
        for shares in (1, 2, 5):
            assert np.array_equal(attend(texts, [0] * 3, positions, query[start : start + 3], shares=shares), whole[start : start + 3])


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


# --- Writing the cache


def write(texts: Texts, owners: list[int], positions: list[int], key: Array, value: Array) -> int:
    """Runs cache.write; returns the error word."""
    error = np.zeros(1, np.int64)
    head, keep = texts.header(np.array(owners, np.int32), np.array(positions, np.int32), error)
    rows = np.concatenate([key.reshape(len(owners), -1), value.reshape(len(owners), -1)], 1)
    strides = {"key_stride": rows.strides[0], "value_stride": rows.strides[0]}
    addresses = {"key": address(rows), "value": address(rows) + rows.strides[0] // 2}
    args = pack(CACHE_WRITE, header=address(head), **addresses, **strides, **texts.place(), op=21)
    for chunk in range(len(owners)):
        kernel("cache.write", texts.shape.dtype)(args, chunk)
    assert keep
    return int(error[0])


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


@pytest.mark.parametrize(("dtype", "size"), [("int16", 80), ("int16", 21), ("int8", 8)])
def test_cache_write_of_codes(dtype: str, size: int) -> None:
    """As kv.py writes them, but for the last bit: sums of squares are added up in another order."""
    shape = Shape(kv_heads=3, size=size, dtype=dtype)
    texts = Texts.of(shape, (300, 20))
    owners, positions = [0, 1, 0, 0, 1], [255, 19, 256, 299, 3]
    rng = np.random.default_rng(5)
    key, value = rng.standard_normal((2, 5, 3, size)).astype(F) * np.exp(rng.uniform(-20, 5, (2, 5, 3, 1))).astype(F)
    key[3, 1] = value[4, 2] = 0
    wanted = KVCache(texts.cache.layers, texts.cache.blocks, dtype)
    wanted.data[:] = texts.cache.data
    for t, (owner, position) in enumerate(zip(owners, positions, strict=True)):
        wanted.write(LAYER, texts.sequences[owner].blocks[position // BLOCK], position % BLOCK, key[t], value[t])
    assert write(texts, owners, positions, key, value) == 0
    for block in range(texts.cache.blocks):
        np.testing.assert_allclose(texts.cache.scales(LAYER, block), wanted.scales(LAYER, block), rtol=1e-6)
        for name in ("keys", "values"):
            found, right = (getattr(cache, name)(LAYER, block).astype(int) for cache in (texts.cache, wanted))
            right = right[..., :size, :] if name == "values" else right
            found = found[..., :size, :] if name == "values" else found
            assert abs(found - right).max() <= 1 and (found != right).mean() < 0.001
    outside = [np.delete(c.data.reshape(c.blocks, -1), range(*c.layer_offsets[LAYER : LAYER + 2]), 1) for c in (texts.cache, wanted)]
    assert np.array_equal(*outside)


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
    names += [("attention.rows", 64, "int16", 3, 8), ("attention.shared", 64, "int8", 3), ("cache.write", "int16"), ("cache.write", "int8")]
    assert {name: kernel(*name).calls() for name in names} == {name: [] for name in names}


FOR_OTHERS = {
    "haswell": "(sees and small) or limits or (codes and (grouped or bits))",
    "x86-64": "(sees and small) or (codes and odd) or (write_puts and 80) or exp or (activations and silu) or (rope and 20)"
    " or (top and 257)",
}


@only_x86
@pytest.mark.parametrize("cpu", FOR_OTHERS)
def test_other_cpus(cpu: str) -> None:
    """Some of these tests and of the elementwise ones: with 16 registers, and with neither fused multiply-add nor f16."""
    if cpu == "haswell" and "avx2" not in target.features():
        pytest.skip("this CPU has no AVX2")
    files = [__file__, str(Path(__file__).with_name("test_kernels_elementwise.py"))]
    run_as(cpu, "", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *files, "-k", FOR_OTHERS[cpu])
