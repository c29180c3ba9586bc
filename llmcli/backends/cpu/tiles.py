"""How the attention kernel divides its work: its register tile, and what it keeps in memory. No Numba here, because
lowering needs the sizes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from llmcli.backends.cpu import target

BLOCK = 256
"""Positions in a block of the cache: kv.BLOCK, said here again because kernels' object files are keyed by this file."""


@dataclass(frozen=True)
class AttentionTile:
    """Vectors of 16 that are summed in registers at once: queries x keys (of 16 positions each) for the scores, queries x
    columns (of 16 each) for the values; and the memory this needs. They change the speed, never a bit of the result."""

    queries: int
    keys: int
    columns: int
    tiles: int
    """Tiles of `queries` queries that one chunk needs at most."""
    head_size: int

    @property
    def part_bytes(self) -> int:
        """One query's sum over some keys: vector f32 [Dp], then maximum and sum of the weights, padded to 64 bytes."""
        return (-(-self.head_size // 16) * 16 + 16) * 4

    @property
    def block_bytes(self) -> int:
        """The sums of all of a chunk's queries over one block."""
        return self.tiles * self.queries * self.part_bytes

    @property
    def packed_bytes(self) -> int:
        """A chunk's queries, f32 [Dp] each."""
        return self.tiles * self.queries * -(-self.head_size // 16) * 64

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory of one thread: sums so far, sums of one block, queries, scores of one tile and block."""
        return 2 * self.block_bytes + self.packed_bytes + self.queries * BLOCK * 4


@functools.cache
def attention_tile(head_size: int, queries: int) -> AttentionTile:
    """The tile for a chunk of up to `queries` queries that share their keys: the one with the least work per key, where
    each vector that is loaded serves all queries of the tile, and each query's number all its vectors."""
    room = 24 if target.registers() == 32 and target.is_x86() else 6
    vectors = -(-head_size // 16)

    def tile(size: int) -> AttentionTile:
        keys = max(k for k in (1, 2, 4, 8, 16) if k * size <= room)
        columns = max(c for c in range(1, room // size + 1) if vectors % c == 0)
        return AttentionTile(size, keys, columns, -(-queries // size), head_size)

    def work(t: AttentionTile) -> float:
        return t.tiles * (2 * t.queries + 2 + t.queries / t.columns + t.queries / t.keys)

    best = min((tile(size) for size in range(1, min(queries, room) + 1)), key=work)
    # a single tile reads its keys from memory, where one stream is fastest; others find them in the cache
    return replace(best, keys=1) if best.tiles == 1 else best
