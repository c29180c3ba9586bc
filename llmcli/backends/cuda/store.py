"""The KV cache of a GPU's layers: the blocks of kv.py by the same numbers, laid out for warps (kernels/cache.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cuda.kernels.cache import CacheLayout
from llmcli.backends.cuda.memory import Array, Memory
from llmcli.kv import BLOCK, LANES, KVCache

BITS: dict[str, np.dtype[Any]] = {"f16": np.dtype(np.uint16), "f32": np.dtype(np.uint32)}
"""Cached numbers as their bits, which no copy may change."""


class DeviceStore:
    """See kv.Store. layers: numbers of the cache's layers that are kept here."""

    def __init__(self, memory: Memory, cache: KVCache, layers: tuple[int, ...]) -> None:
        self.memory, self.layers, self.cache = memory, layers, cache
        self.layout = CacheLayout.of([cache.layers[number] for number in layers], cache.dtype)
        self.bytes = memory.array(self.layout.block_bytes * cache.blocks, np.uint8)

    def start(self, layer: int) -> int:
        """Byte of a block where a layer begins."""
        return self.layout.starts[self.layers.index(layer)]

    def copy(self, source: int, target: int) -> None:
        size = self.layout.block_bytes
        with self.memory.errors():
            old, new = (self.bytes[block * size : (block + 1) * size] for block in (source, target))
            new.copy_to_device(old, stream=self.memory.stream)

    def read(self, layer: int, block: int) -> npt.NDArray[np.uint8]:
        own, size = self._part(layer, block), self.cache.layers[layer].head_size
        found = np.empty(own.size, np.uint8)
        with self.memory.errors():
            own.copy_to_host(found, stream=self.memory.stream)
            self.memory.stream.synchronize()
        heads = found.reshape(self.cache.layers[layer].kv_heads, -1)
        split, item = self._key_bytes(layer), BITS[self.cache.dtype]
        count, chunk = len(heads), 16 // item.itemsize
        # keys [chunks][256][C] -> [16 tiles][D][16 positions]; values [256 / C][D][C] -> [256][Dp]
        keys = heads[:, :split].copy().view(item).reshape(count, -1, BLOCK, chunk).swapaxes(1, 2).reshape(count, BLOCK, -1)[:, :, :size]
        values = heads[:, split:].copy().view(item).reshape(count, BLOCK // chunk, size, chunk).swapaxes(2, 3).reshape(count, BLOCK, size)
        tiles = keys.reshape(count, BLOCK // LANES, LANES, size).swapaxes(2, 3).reshape(count, -1)
        wide = np.zeros((count, BLOCK, -(-size // LANES) * LANES), item)
        wide[:, :, :size] = values
        return np.concatenate((tiles, wide.reshape(count, -1)), 1).view(np.uint8).reshape(-1)

    def write(self, layer: int, block: int, data: npt.NDArray[np.uint8]) -> None:
        shape, item = self.cache.layers[layer], BITS[self.cache.dtype]
        count, size, chunk = shape.kv_heads, shape.head_size, 16 // item.itemsize
        heads, split = data.reshape(count, -1), self.cache.key_bytes(shape)
        keys = heads[:, :split].copy().view(item).reshape(count, BLOCK // LANES, size, LANES).swapaxes(2, 3).reshape(count, BLOCK, size)
        values = heads[:, split:].copy().view(item).reshape(count, BLOCK, -1)[:, :, :size]
        padded = np.zeros((count, BLOCK, -(-size // chunk) * chunk), item)
        padded[:, :, :size] = keys
        chunks = padded.reshape(count, BLOCK, -1, chunk).swapaxes(1, 2).reshape(count, -1)
        columns = values.reshape(count, BLOCK // chunk, chunk, size).swapaxes(2, 3).reshape(count, -1)
        packed = np.concatenate((chunks, columns), 1).view(np.uint8).reshape(-1)
        with self.memory.errors():
            self._part(layer, block).copy_to_device(packed, stream=self.memory.stream)
            self.memory.stream.synchronize()

    def _key_bytes(self, layer: int) -> int:
        return self.layout.layers[self.layers.index(layer)].key_bytes

    def _part(self, layer: int, block: int) -> Array:
        index = self.layers.index(layer)
        start = block * self.layout.block_bytes + self.layout.starts[index]
        return self.bytes[start : start + self.cache.layers[layer].kv_heads * self.layout.layers[index].head_bytes]
