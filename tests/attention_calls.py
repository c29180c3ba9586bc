"""Texts in a KV cache, and attention over them by kernels and in float64, for tests.

Whatever nobody has written is NaN: outputs, cache positions beyond a text, and scratch memory, which ends at canaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kernel_calls import address, header, kernel
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


def check_bits(shape: Shape) -> None:
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
