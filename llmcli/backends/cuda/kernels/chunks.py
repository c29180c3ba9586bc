"""The KV cache's chunks of 16 bytes: 8 f16 or 4 f32. Loaded into local arrays of words, then made floats: loops over both are of
constant length, so that the compiler keeps them in registers."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import bits_float, device, fma, half_to_float, load16

HALF, LOW = np.int32(16), np.int32(0xFFFF)


@device
def load(cache, at, words, i):
    """Chunk i of `words` is what the cache has at byte `at`."""
    words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = load16(cache, at)


@device
def halves(words, i, floats, at):
    """Chunk i of `words` as 8 f16, the lower half of each word first."""
    for j in range(4):
        word = words[4 * i + j]
        floats[at + 2 * j] = half_to_float(word & LOW)
        floats[at + 2 * j + 1] = half_to_float((word >> HALF) & LOW)


@device
def singles(words, i, floats, at):
    """Chunk i of `words` as 4 f32."""
    for j in range(4):
        floats[at + j] = bits_float(words[4 * i + j])


UNPACK = {"f16": halves, "f32": singles}
"""For each cache type: (words, number of the chunk, floats, index) -> the chunk's floats are in `floats` from the index on."""


@device
def dot4(a, b, c, d, floats, at, sum_):
    """sum + a * floats[at] + ... + d * floats[at + 3], by fma in this order."""
    return fma(d, floats[at + 3], fma(c, floats[at + 2], fma(b, floats[at + 1], fma(a, floats[at], sum_))))
