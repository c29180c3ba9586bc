"""Layers of the KV cache on the device: the same bits there and back, copies and forks included."""

from __future__ import annotations

import numpy as np
import pytest

from llmcli.backends.cuda.memory import Memory
from llmcli.backends.cuda.store import DeviceStore
from llmcli.kv import BLOCK, KVCache
from llmcli.plan import CacheLayer

LAYERS = [CacheLayer(1, 16), CacheLayer(2, 7), CacheLayer(1, 20), CacheLayer(3, 3)]


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_layers_move_there_and_back(dtype: str) -> None:
    rng = np.random.default_rng(5)
    cache = KVCache(LAYERS, 5, dtype)
    text = cache.sequence()
    text.extend(BLOCK + 30)
    for block in text.blocks:
        for layer in range(len(LAYERS)):
            for part in (cache.keys(layer, block), cache.values(layer, block)[..., : LAYERS[layer].head_size]):
                part[:] = rng.standard_normal(part.shape)
    cache.keys(1, text.blocks[0])[0, 0, 0, 0] = np.nan
    expected = [text.keys(layer) for layer in range(len(LAYERS))]
    values = [cache.values(layer, text.blocks[1]).copy() for layer in range(len(LAYERS))]
    store = DeviceStore(Memory(0), cache, (1, 3))
    cache.keep_in(store)
    # What moved is not read here any more.
    cache.data[:] = np.where(np.arange(cache.data.size) % cache.block_bytes < cache.layer_offsets[1], cache.data, 0)
    for layer in (0, 1, 3):
        np.testing.assert_array_equal(text.keys(layer), expected[layer])
        np.testing.assert_array_equal(cache.values(layer, text.blocks[1]), values[layer])
    fork = text.fork()
    fork.extend(1)  # copies the block that both share, here and there
    assert fork.blocks[1] != text.blocks[1]
    for layer in (0, 1, 3):
        np.testing.assert_array_equal(fork.keys(layer)[:, : BLOCK + 30], expected[layer])
    cache.take_back(store)
    for layer in (0, 1, 3):
        np.testing.assert_array_equal(fork.keys(layer)[:, : BLOCK + 30], expected[layer])
        np.testing.assert_array_equal(cache.values(layer, fork.blocks[1]), values[layer])
