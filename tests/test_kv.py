"""The KV cache's blocks: who owns them, who shares them, and what a full cache leaves behind."""

from __future__ import annotations

import numpy as np
import pytest

from llmcli.errors import InternalError, OutOfMemory
from llmcli.kv import BLOCK, KVCache, Sequence
from llmcli.plan import CacheLayer


def cache_of(blocks: int) -> KVCache:
    return KVCache([CacheLayer(1, 16)], blocks, "f32")


def write(sequence: Sequence, values: list[int]) -> None:
    """Extends the sequence and stores these numbers at its new positions."""
    start = sequence.length
    sequence.extend(len(values))
    for position, value in enumerate(values, start):
        sequence.cache.values(0, sequence.blocks[position // BLOCK])[0, position % BLOCK] = value


def read(sequence: Sequence) -> list[int]:
    found = [sequence.cache.values(0, sequence.blocks[p // BLOCK])[0, p % BLOCK, 0] for p in range(sequence.length)]
    return [int(x) for x in found]


def test_forks_never_see_each_other() -> None:
    """Random extensions, cuts and forks around the borders of blocks, against lists of numbers."""
    rng = np.random.default_rng(3)
    cache = cache_of(24)
    pairs: list[tuple[Sequence, list[int]]] = [(cache.sequence(), [])]
    for number in range(400):
        sequence, texts = pairs[rng.integers(len(pairs))]
        match rng.integers(4):
            case 0:
                more = [number] * int(rng.choice([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1]))
                before = list(sequence.blocks)
                try:
                    write(sequence, more)
                    texts += more
                except OutOfMemory:
                    assert (sequence.blocks, sequence.length) == (before, len(texts))
            case 1:
                length = max(0, len(texts) - int(rng.choice([1, 2, BLOCK - 1, BLOCK, BLOCK + 1])))
                length = length // BLOCK * BLOCK if number % 3 == 0 else length
                sequence.truncate(length)
                del texts[length:]
            case 2 if len(pairs) < 5:
                pairs.append((sequence.fork(), list(texts)))
            case 3 if len(pairs) > 3:
                pairs.pop(int(rng.integers(len(pairs))))[0].close()
        used = {block for other, _ in pairs for block in other.blocks}
        assert len(used) + len(cache._free) == cache.blocks and used.isdisjoint(cache._free)
        assert sequence.length == len(texts) and len(sequence.blocks) == -(-len(texts) // BLOCK) or sequence.length == 0
    for sequence, texts in pairs:
        assert read(sequence) == texts
        sequence.close()
    assert sorted(cache._free) == list(range(cache.blocks))


def test_a_full_cache_takes_nothing() -> None:
    """Blocks that a failed extension kept would be missing elsewhere, and a fork would share them unseen."""
    cache = cache_of(3)
    sequence = cache.sequence()
    sequence.extend(100)
    with pytest.raises(OutOfMemory, match="the KV cache is full: 768 positions, 512 of them free"):
        sequence.extend(900)
    assert sequence.length == 100 and len(sequence.blocks) == 1
    cache.sequence().extend(2 * BLOCK)
    with pytest.raises(OutOfMemory):
        sequence.fork().extend(1)  # its copy of the partial block
    with pytest.raises(InternalError):
        sequence.truncate(101)
