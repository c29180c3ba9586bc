"""The KV cache's chunks of 16 bytes: 16 codes, 8 f16 or 4 f32. Loaded into local arrays of words, then made floats: loops over both are of
constant length, so that the compiler keeps them in registers.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import WARP, bits_float, cuda, device, fma, half_to_float, load16, product, shared_floats

F = np.float32
HALF, LOW, SIGN = np.int32(16), np.int32(0xFFFF), np.int32(24)
ZERO = F(0)
__all__ = ["UNPACK", "dot4", "load", "load_float", "scale_weights", "shared_floats"]


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


@device
def codes(words, i, floats, at):
    """Chunk i of `words` as 16 signed bytes."""
    for j in range(4):
        word = words[4 * i + j]
        for k in range(4):
            floats[at + 4 * j + k] = F(np.int32(word << (24 - 8 * k)) >> SIGN)


UNPACK = {"f16": halves, "f32": singles, "int8": codes}
"""For each cache type: (words, number of the chunk, floats, index) -> the chunk's floats are in `floats` from the index on."""


@device
def dot4(a, b, c, d, floats, at, sum_):
    """sum + a * floats[at] + ... + d * floats[at + 3], by fma in this order."""
    return fma(d, floats[at + 3], fma(c, floats[at + 2], fma(b, floats[at + 1], fma(a, floats[at], sum_))))


@device
def load_float(cache, at):
    """The f32 at byte `at`, a multiple of 4: one of the four words around it."""
    a, b, c, d = load16(cache, at & -16)
    i = at >> 2 & 3
    return bits_float(a if i == 0 else b if i == 1 else c if i == 2 else d)


@device
def scale_weights(cache, at, scores, row, steps):
    """A warp multiplies the weights at scores[row ..] with the scales of their values, f32 from byte `at` on. A lane takes what it
    weighed; where a weight is 0 there may be no scale."""
    for i in range(steps):
        key = cuda.threadIdx.x % WARP + i * WARP
        weight = scores[row + key]
        if weight != ZERO:
            scores[row + key] = product(weight, load_float(cache, at + key * 4))
