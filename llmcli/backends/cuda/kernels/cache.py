"""The KV cache on the device: its layout, and writing keys and values into it.

Blocks of 256 positions, numbered as in kv.py; a block, a layer and a kv head have
    keys    [ceil(D / C)][256 positions][C]   C columns of a position are a chunk of 16 bytes; columns beyond D are zero
    values  [256 / C][D][C positions]         C positions of a column are a chunk
    bytes   [block][layer][kv head][keys | values | scales]
with C = 8 for f16, 4 for f32, 16 for int8: codes, whose scales follow, f32 [key, value][256 positions], the largest magnitude of
a position's key or value being 127. So a warp whose lanes are positions reads 512 consecutive bytes of keys, and a warp whose lanes are
columns reads 512 consecutive bytes of values; both are also what the tensor cores' B fragments want. A copied block is one run
of bytes. Beyond a sequence's length lies what an earlier owner left, NaN perhaps: nobody may use it, not even times zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.backends.cuda.kernels.faults import report
from llmcli.backends.cuda.kernels.platform import (
    SIMULATED,
    WARP,
    cuda,
    device,
    float_bits,
    float_to_half,
    kernel,
    lane_max,
    made,
    nearest,
    product,
)
from llmcli.backends.cuda.kernels.step import HEADER, MOST, OWNERS, POSITIONS, TABLE_WIDTH, TABLES
from llmcli.kv import BLOCK
from llmcli.plan import CacheLayer

F = np.float32
CHUNK_BYTES = 16
ITEM = {"f32": 4, "f16": 2, "int8": 1}
"""Bytes of a number, for each cache type."""
VIEW = {"f32": np.dtype(np.float32), "f16": np.dtype(np.uint16), "int8": np.dtype(np.uint8)}
"""As what `write` sees the cache."""
LIMIT = {"f32": F(np.finfo(F).max), "f16": F(65504), "int8": F(1e18)}
"""What magnitudes of keys and values each type takes."""
LARGEST = F(127)
"""The largest code."""
SCALES_BYTES = 4 * BLOCK
"""Of a block's keys, or values, of one head."""
THREADS = 128 if not SIMULATED else 32


@dataclass(frozen=True)
class HeadLayout:
    """Where one kv head's numbers of one block are."""

    head_size: int
    dtype: str

    @property
    def chunk(self) -> int:
        """Numbers in a chunk."""
        return CHUNK_BYTES // ITEM[self.dtype]

    @property
    def key_chunks(self) -> int:
        """Chunks of one key."""
        return -(-self.head_size // self.chunk)

    @property
    def key_bytes(self) -> int:
        return self.key_chunks * BLOCK * CHUNK_BYTES

    @property
    def scales_start(self) -> int:
        """Where the scales of codes begin."""
        return self.key_bytes + BLOCK * self.head_size * ITEM[self.dtype]

    @property
    def head_bytes(self) -> int:
        return self.scales_start + (2 * SCALES_BYTES if self.dtype == "int8" else 0)


@dataclass(frozen=True)
class CacheLayout:
    """A device's part of the cache: some layers of every block."""

    layers: tuple[HeadLayout, ...]
    starts: tuple[int, ...]
    """Byte of a block where each layer begins."""
    block_bytes: int

    @staticmethod
    def of(layers: Sequence[CacheLayer], dtype: str) -> CacheLayout:
        heads = tuple(HeadLayout(layer.head_size, dtype) for layer in layers)
        starts, size = [], 0
        for head, layer in zip(heads, layers, strict=True):
            starts.append(size)
            size += layer.kv_heads * head.head_bytes
        return CacheLayout(heads, tuple(starts), size)


@device
def block_byte(step, token, block, layer_start, block_bytes):
    """Where the layer begins in block number `block` of a token's sequence."""
    owner = step[HEADER + OWNERS * step[MOST] + token]
    number = step[HEADER + TABLES * step[MOST] + owner * step[TABLE_WIDTH] + block]
    return np.int64(layer_start) + np.int64(number) * np.int64(block_bytes)


@device
def as_half(x):
    return np.uint16(float_to_half(x))


@device
def as_float(x):
    return x


STORED = {"f16": as_half, "f32": as_float}


def threads(head_size: int) -> int:
    """Of a block whose threads are a head's columns: whole warps."""
    return min(THREADS, -(-head_size // WARP) * WARP)


def head_writer(head_size: int, dtype: str):
    """The device function by which a block of `threads` writes one head's key and value; all of them call it.

    write_head(step, fault, op, token, key, k, value, v, cache, layer_start, block_bytes, head): key[k ..] and value[v ..] are the head's;
    cache: the whole of it as VIEW[dtype]; layer_start, block_bytes: bytes. Both are read once (of int8, twice); 16-byte chunks are
    written in parts that the L2 cache puts together."""
    return _codes_writer(head_size) if dtype == "int8" else _floats_writer(head_size, dtype)


def _floats_writer(head_size, dtype):
    """A thread stores a column of the key and of the value."""
    layout = HeadLayout(head_size, dtype)
    chunk, padded, item = layout.chunk, layout.key_chunks * layout.chunk, ITEM[dtype]
    key_bytes, head_bytes = layout.key_bytes, layout.head_bytes
    stored, limit, zero, block = STORED[dtype], LIMIT[dtype], F(0), threads(head_size)

    @device
    def write_head(step, fault, op, token, key, k, value, v, cache, layer_start, block_bytes, head):
        position = step[HEADER + POSITIONS * step[MOST] + token]
        within = position % BLOCK
        start = block_byte(step, token, position // BLOCK, layer_start, block_bytes) + head * head_bytes
        keys, values = start // item, (start + key_bytes) // item
        for column in range(cuda.threadIdx.x, padded, block):
            own = zero
            if column < head_size:
                own, other = key[k + column], value[v + column]
                if not (abs(own) <= limit and abs(other) <= limit):
                    report(fault, op, token)
                cache[values + (within // chunk * head_size + column) * chunk + within % chunk] = stored(other)
            cache[keys + (column // chunk * BLOCK + within) * chunk + column % chunk] = stored(own)

    return write_head


def _codes_writer(head_size):
    """A warp takes the head, the block's other warps wait."""
    layout = HeadLayout(head_size, "int8")
    padded, key_bytes, head_bytes, scales_start = layout.key_chunks * layout.chunk, layout.key_bytes, layout.head_bytes, layout.scales_start
    chunk, limit, zero = layout.chunk, LIMIT["int8"], F(0)

    @device
    def largest(x, start, end):
        """-> the largest magnitude of a head, and whether all can be stored."""
        most, good = zero, True
        for c in range(cuda.threadIdx.x % WARP, end, WARP):
            size = abs(x[start + c])
            good = good and size <= limit
            if size > most:
                most = size
        return lane_max(most), good

    @device
    def code(x, start, column, inverse):
        return np.uint8(nearest(product(x[start + column], inverse)) & 255)

    @device
    def write_head(step, fault, op, token, key, k, value, v, cache, layer_start, block_bytes, head):
        lane = cuda.threadIdx.x % WARP
        end = head_size if cuda.threadIdx.x < WARP else 0  # all warps of a block exchange equally often
        key_most, good_key = largest(key, k, end)
        value_most, good_value = largest(value, v, end)
        if end and not (good_key and good_value):
            report(fault, op, token)
        elif end:  # else the codes would not be numbers either
            position = step[HEADER + POSITIONS * step[MOST] + token]
            within = position % BLOCK
            start = block_byte(step, token, position // BLOCK, layer_start, block_bytes) + head * head_bytes
            key_inverse = LARGEST / key_most if key_most > zero else zero
            value_inverse = LARGEST / value_most if value_most > zero else zero
            for c in range(lane, padded, WARP):
                at = start + (c // chunk * BLOCK + within) * chunk + c % chunk
                cache[at] = code(key, k, c, key_inverse) if c < head_size else np.uint8(0)
            for c in range(lane, head_size, WARP):
                cache[start + key_bytes + (within // chunk * head_size + c) * chunk + within % chunk] = code(value, v, c, value_inverse)
            if lane < 8:  # the bytes of both scales
                bits = float_bits((key_most if lane < 4 else value_most) / LARGEST)
                at = start + scales_start + (lane // 4 * BLOCK + within) * 4 + lane % 4
                cache[at] = np.uint8((bits >> (lane % 4 * 8)) & 255)

    return write_head


@made
def write(head_size: int, dtype: str):
    """The kernel: a block writes one head of one token (head_writer). Grid (kv heads, tokens)."""
    write_head = head_writer(head_size, dtype)

    @kernel
    def cache_write(step, fault, op, key, key_start, key_stride, value, value_start, value_stride, cache, layer_start, block_bytes):
        head, token = cuda.blockIdx.x, cuda.blockIdx.y
        if token < step[0]:
            k, v = key_start + token * key_stride + head * head_size, value_start + token * value_stride + head * head_size
            write_head(step, fault, op, token, key, k, value, v, cache, layer_start, block_bytes, head)

    return cache_write


def cache_write(head_size: int, dtype: str, most: int, kv_heads: int):
    """(kernel, grid, block) for up to `most` tokens."""
    return write(head_size, dtype), (kv_heads, most), WARP if dtype == "int8" else threads(head_size)
