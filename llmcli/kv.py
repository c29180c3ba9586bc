"""The KV cache: what attention remembers, in blocks of 256 positions.

A block holds, for every layer and kv head, the keys and values of 256 consecutive positions of one sequence:
    keys    [16 tiles][D][16 positions]   a tile is transposed, so that lanes are positions, as lanes are rows in weights
    values  [256 positions][Dp]           Dp is the head size padded to 16
    bytes   [block][layer][kv head][keys | values]
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

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


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
    """Storage for `blocks` blocks of a model with these layers. dtype: 'f32' or 'f16'."""

    def __init__(self, layers: Seq[CacheLayer], blocks: int, dtype: str = "f16") -> None:
        self.layers = tuple(layers)
        self.blocks = blocks
        self.dtype = dtype
        self.item = DTYPES[dtype].itemsize
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
        item = DTYPES[dtype].itemsize
        size = sum(x.kv_heads * BLOCK * (x.head_size + -(-x.head_size // LANES) * LANES) * item for x in layers)
        return -(-size // 64) * 64

    def key_bytes(self, layer: CacheLayer) -> int:
        return BLOCK * layer.head_size * self.item

    def head_bytes(self, layer: CacheLayer) -> int:
        """Bytes of keys and values of one head in one block."""
        return self.key_bytes(layer) + BLOCK * -(-layer.head_size // LANES) * LANES * self.item

    def keys(self, number: int, block: int) -> npt.NDArray[np.floating]:
        """Layer `number`'s keys in a block, a view where they are here: [kv_heads, 16 tiles, D, 16]."""
        layer, heads = self.layers[number], self._heads(number, block)
        part = heads[:, : self.key_bytes(layer)].view(DTYPES[self.dtype])
        return part.reshape(layer.kv_heads, BLOCK // LANES, layer.head_size, LANES)

    def values(self, number: int, block: int) -> npt.NDArray[np.floating]:
        """Layer `number`'s values in a block, a view where they are here: [kv_heads, 256, Dp]."""
        layer, heads = self.layers[number], self._heads(number, block)
        return heads[:, self.key_bytes(layer) :].view(DTYPES[self.dtype]).reshape(layer.kv_heads, BLOCK, -1)

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
            keys = self.cache.keys(number, block).swapaxes(2, 3)
            found[:, at * BLOCK : (at + 1) * BLOCK] = keys.reshape(layer.kv_heads, BLOCK, layer.head_size)
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
