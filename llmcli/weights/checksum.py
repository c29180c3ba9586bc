"""The 64-bit checksum of a tensor's bytes in the packed file, in NumPy. Backends have faster twins.

Over the little-endian 64-bit words w_i of the bytes (a multiple of 64 of them): the sum of mix(w_i + (i + 1) * STEP)
modulo 2^64, where mix is a bijection. So one changed word always changes the sum, moved words change it, and parts of
a tensor may be summed in any order, by several threads.
"""

from __future__ import annotations

import numpy as np

from llmcli.formats.format import Bytes

STEP = 0x9E3779B97F4A7C15
FACTOR = 0xD6E8FEB86659FD93
MASK = (1 << 64) - 1
BLOCK = 1 << 14
"""Words mixed at once: their arrays stay in the cache."""

_PLACES = np.arange(1, BLOCK + 1, dtype=np.uint64) * np.uint64(STEP)


def checksum(data: Bytes, first_word: int = 0) -> int:
    """The sum over a part of a tensor: u8, 1-D, a multiple of 64 bytes, that begins at word `first_word` of it."""
    words = data.view(np.uint64)
    half, factor = np.uint64(32), np.uint64(FACTOR)
    total = 0
    for start in range(0, len(words), BLOCK):
        part = words[start : start + BLOCK]
        x = part + _PLACES[: len(part)]
        x += np.uint64((first_word + start) * STEP & MASK)
        for _ in range(2):
            x ^= x >> half
            x *= factor
        x ^= x >> half
        total += int(x.sum(dtype=np.uint64))
    return total & MASK
