"""The KV cache: what attention remembers, in blocks of 256 positions.

A block holds, for every layer and kv head, the keys and values of 256 consecutive positions of one sequence:
    keys    [16 tiles][D][16 positions]   a tile is transposed, so that lanes are positions, as lanes are rows in weights
    values  [256 positions][Dp]           Dp is the head size padded to 16
    bytes   [block][layer][kv head][keys | values | scales]
Numbers are f32 or f16, or codes (int16, int8), which have one scale for the key and one for the value of each position and head, f32
[keys, values][256], and lie in pairs, because that is how they are multiplied and added in integers:
    keys    [16 tiles][D / 2 pairs of columns][16 positions][2]
    values  [128 pairs of positions][Dp][2]
A sequence is a list of block numbers and a length. Forks share full blocks and copy the last, partial one. Beyond a
sequence's length lies what an earlier owner left, NaN perhaps: nobody may use it, not even times zero.

Layers that a GPU computes are kept there, in a `Store` with the same block numbers; their place here is never touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmcli.errors import InternalError, OutOfMemory
from llmcli.plan import CacheLayer

BLOCK = 256
"""Positions in a block."""
LANES = 16

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in {"f32": "f4", "f16": "f2", "int16": "i2", "int8": "i1"}.items()}
CODES = {"int16": 31744, "int8": 127}
"""Types of codes: the length of an int16 key's codes, the largest code of other keys and of values."""


Numbers = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def _parts(layer: CacheLayer, dtype: str) -> tuple[int, int, int]:
    """Bytes of the keys, values and scales of one head in one block."""
    item, size = DTYPES[dtype].itemsize, layer.head_size
    columns = size + size % 2 if dtype in CODES else size
    return BLOCK * columns * item, BLOCK * -(-size // LANES) * LANES * item, 2 * BLOCK * 4 if dtype in CODES else 0


class Store(Protocol):
    """Where some layers' part of every block is kept instead of in the cache's own memory."""

    layers: tuple[int, ...]

    def copy(self, source: int, target: int) -> None:
        """Copies its layers of a block to another block."""
        ...

    def read(self, layer: int, block: int) -> npt.NDArray[np.uint8]:
        """u8: a copy of a layer's part of a block, as the cache would have it."""
        ...

    def write(self, layer: int, block: int, data: npt.NDArray[np.uint8]) -> None:
        """Stores what `read` would give."""
        ...


class KVCache:
    """Storage for `blocks` blocks of a model with these layers. dtype: one of DTYPES."""

    def __init__(self, layers: Seq[CacheLayer], blocks: int, dtype: str = "f16") -> None:
        self.layers = tuple(layers)
        self.blocks = blocks
        self.dtype = dtype
        self.layer_offsets: list[int] = []
        size = 0
        for layer in self.layers:
            self.layer_offsets.append(size)
            size += layer.kv_heads * self.head_bytes(layer)
        self.block_bytes = -(-size // 64) * 64
        total = max(1, self.block_bytes * blocks)
        try:
            # Anonymous pages are zero and cost memory only once written: a long context is free until it is used.
            self._memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemory(f"no room for a KV cache of {total / 2**20:,.0f} MiB", str(error)) from error
        with suppress(OSError, AttributeError):  # large pages, where the system has them: one token reads all of a long text
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.data: npt.NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        self._free = list(range(blocks - 1, -1, -1))
        self._owners = [0] * blocks
        self._stores: list[Store] = []
        self._ends = [*self.layer_offsets[1:], size]

    def keep_in(self, store: Store) -> None:
        """From now on the layers of `store` are kept there, with what the blocks in use hold."""
        for layer, block in self._in_use(store):
            store.write(layer, block, self._heads(layer, block).reshape(-1))
        self._stores.append(store)

    def take_back(self, store: Store) -> None:
        """The layers of `store` are kept here again, with what the blocks in use hold."""
        self._stores.remove(store)
        for layer, block in self._in_use(store):
            self._heads(layer, block).reshape(-1)[:] = store.read(layer, block)

    def _in_use(self, store: Store) -> Iterator[tuple[int, int]]:
        return ((layer, block) for block, owners in enumerate(self._owners) if owners for layer in store.layers)

    @staticmethod
    def bytes_per_block(layers: Seq[CacheLayer], dtype: str) -> int:
        """Bytes of one block of 256 positions."""
        return -(-sum(x.kv_heads * sum(_parts(x, dtype)) for x in layers) // 64) * 64

    def key_bytes(self, layer: CacheLayer) -> int:
        return _parts(layer, self.dtype)[0]

    def head_bytes(self, layer: CacheLayer) -> int:
        """Bytes of keys, values and scales of one head in one block."""
        return sum(_parts(layer, self.dtype))

    def keys(self, number: int, block: int) -> Numbers:
        """Layer `number`'s keys in a block, a view where they are here: [kv_heads, 16 tiles, D, 16]; codes:
        [kv_heads, 16 tiles, pairs, 16, 2]."""
        layer, heads = self.layers[number], self._heads(number, block)
        part = heads[:, : self.key_bytes(layer)].view(DTYPES[self.dtype])
        inner = (-1, LANES, 2) if self.dtype in CODES else (layer.head_size, LANES)
        return part.reshape(layer.kv_heads, BLOCK // LANES, *inner)

    def values(self, number: int, block: int) -> Numbers:
        """Layer `number`'s values in a block, a view where they are here: [kv_heads, 256, Dp]; codes: [kv_heads, 128 pairs, Dp, 2]."""
        layer, heads = self.layers[number], self._heads(number, block)
        keys, values, _ = _parts(layer, self.dtype)
        part = heads[:, keys : keys + values].view(DTYPES[self.dtype])
        return part.reshape((layer.kv_heads, BLOCK // 2, -1, 2) if self.dtype in CODES else (layer.kv_heads, BLOCK, -1))

    def scales(self, number: int, block: int) -> npt.NDArray[np.float32]:
        """A view of the scales of layer `number`'s codes in a block: [kv_heads, 2 (keys, values), 256]."""
        layer, heads = self.layers[number], self._heads(number, block)
        return heads[:, sum(_parts(layer, self.dtype)[:2]) :].view(np.float32).reshape(layer.kv_heads, 2, BLOCK)

    def write(self, number: int, block: int, within: int, key: Floats, value: Floats) -> None:
        """Stores layer `number`'s key and value [kv_heads, D] at a position of a block."""
        keys, values = self.keys(number, block), self.values(number, block)
        if self.dtype not in CODES:
            keys[:, within // LANES, :, within % LANES] = key
            values[:, within, : key.shape[-1]] = value
            return
        most = CODES[self.dtype]
        sizes = [np.linalg.norm(key, axis=-1) if self.dtype == "int16" else abs(key).max(-1), abs(value).max(-1)]
        even = key.shape[-1] + key.shape[-1] % 2
        for n, (x, size) in enumerate(zip((key, value), sizes, strict=True)):
            self.scales(number, block)[:, n, within] = size / np.float32(most)
            codes = np.zeros((len(x), even), keys.dtype)
            codes[:, : x.shape[-1]] = np.rint(x * (np.float32(most) / np.where(size > 0, size, np.float32(np.inf)))[:, None])
            if n == 0:
                keys[:, within // LANES, :, within % LANES] = codes.reshape(len(x), -1, 2)
            else:
                values[:, within // 2, : x.shape[-1], within % 2] = codes[:, : x.shape[-1]]

    def read(self, number: int, block: int) -> tuple[Floats, Floats]:
        """A copy of layer `number`'s keys and values in a block: f32 [kv_heads, 256, D] each."""
        heads, size = self.layers[number].kv_heads, self.layers[number].head_size
        keys, values = self.keys(number, block), self.values(number, block)
        if self.dtype in CODES:
            scales = self.scales(number, block)[..., None]
            keys = keys.transpose(0, 1, 3, 2, 4).reshape(heads, BLOCK, -1)[..., :size] * scales[:, 0]
            values = values.swapaxes(2, 3).reshape(heads, BLOCK, -1)[..., :size] * scales[:, 1]
            return keys, values
        keys = keys.swapaxes(2, 3).reshape(heads, BLOCK, size)
        return keys.astype(np.float32), values[..., :size].astype(np.float32)

    def _heads(self, number: int, block: int) -> npt.NDArray[np.uint8]:
        layer = self.layers[number]
        for store in self._stores:
            if number in store.layers:
                return store.read(number, block).reshape(layer.kv_heads, -1)
        start = block * self.block_bytes + self.layer_offsets[number]
        return self.data[start : start + layer.kv_heads * self.head_bytes(layer)].reshape(layer.kv_heads, -1)

    def sequence(self) -> Sequence:
        """A new, empty sequence."""
        return Sequence(self)

    def _take(self, count: int) -> list[int]:
        """So many free blocks, or none of them: a sequence that gets a part of what it needs would keep it from others."""
        if count > len(self._free):
            why = f"{self.blocks * BLOCK:,} positions, {len(self._free) * BLOCK:,} of them free"
            raise OutOfMemory("the KV cache is full", why, "Have fewer texts in work at once, or make room for more")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._owners[block] = 1
        return taken

    def _share(self, block: int) -> None:
        self._owners[block] += 1

    def _release(self, block: int) -> None:
        self._owners[block] -= 1
        if self._owners[block] == 0:
            self._free.append(block)

    def _owned_alone(self, block: int) -> bool:
        return self._owners[block] == 1

    def _copy(self, source: int, target: int) -> None:
        elsewhere = {layer for store in self._stores for layer in store.layers}
        for layer in (number for number in range(len(self.layers)) if number not in elsewhere):
            start, size = self.layer_offsets[layer], self._ends[layer] - self.layer_offsets[layer]
            new, old = target * self.block_bytes + start, source * self.block_bytes + start
            self.data[new : new + size] = self.data[old : old + size]
        for store in self._stores:
            store.copy(source, target)


class Sequence:
    """One text's place in the cache: positions 0 .. length - 1 are filled."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.blocks: list[int] = []
        self.length = 0

    def extend(self, count: int) -> None:
        """Makes room for `count` more positions and counts them in; the step that follows fills them. Raises OutOfMemory,
        and is then as it was."""
        if count < 0:
            raise InternalError("a sequence cannot be extended by a negative count")
        partial = self.length // BLOCK
        copied = count > 0 and partial < len(self.blocks) and not self.cache._owned_alone(self.blocks[partial])
        new = self.cache._take(-(-(self.length + count) // BLOCK) - len(self.blocks) + copied)
        if copied:
            mine = new.pop()
            self.cache._copy(self.blocks[partial], mine)
            self.cache._release(self.blocks[partial])
            self.blocks[partial] = mine
        self.blocks += new
        self.length += count

    def keys(self, number: int) -> npt.NDArray[np.float32]:
        """A copy of layer `number`'s keys: [kv_heads, length, D]."""
        layer = self.cache.layers[number]
        found = np.empty((layer.kv_heads, len(self.blocks) * BLOCK, layer.head_size), np.float32)
        for at, block in enumerate(self.blocks):
            found[:, at * BLOCK : (at + 1) * BLOCK] = self.cache.read(number, block)[0]
        return found[:, : self.length]

    def truncate(self, length: int) -> None:
        """Forgets every position from `length` on."""
        if not 0 <= length <= self.length:
            raise InternalError(f"cannot truncate a sequence of {self.length} to {length}")
        keep = -(-length // BLOCK)
        for block in self.blocks[keep:]:
            self.cache._release(block)
        del self.blocks[keep:]
        self.length = length

    def fork(self) -> Sequence:
        """A second sequence with the same past. Blocks are shared; whoever extends a shared partial block copies it."""
        other = Sequence(self.cache)
        other.blocks, other.length = list(self.blocks), self.length
        for block in self.blocks:
            self.cache._share(block)
        return other

    def close(self) -> None:
        """Gives all blocks back."""
        self.truncate(0)
