"""Attention's products over a cache in f16, on the tensor cores: mma.sync m16n8k16, exact products of f16 numbers, sums in f32.

Keys and values are f16 already. Queries and weights are f32 and are split in two f16 numbers each, `upper` and what is left, which keep 22
of their 24 bits: two instructions where one would do for f16. A query is divided by a power of two first, so that its largest column is
between 1 and 2 and no column is beyond f16; its products are multiplied by it again, which rounds nothing.

The order of arithmetic: a chain of instructions over spans of 32 columns (of keys) or 32 keys (of values) ascending, in a span columns 0
to 3 of each of its four chunks of eight, then columns 4 to 7, and of each the upper halves, then what is left. Within an instruction the
order is the hardware's, which computes an element of the result from its row and its column alone: so one token and many, other rows of
the same instruction, have the same bits on one GPU.

Fragments: lane 4 g + q has rows g and g + 8, and of both sides the eight columns that are chunk q of a span. A chunk of the cache is one
load of 16 bytes and feeds two instructions.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.attention import ONE, UNIT, ZERO
from llmcli.backends.cuda.kernels.platform import (
    WARP,
    bits_float,
    cuda,
    device,
    float_bits,
    float_to_half,
    half_to_float,
    lane_max,
    mma_f16,
    product,
    shared_floats,
)

SPAN, CHUNK, WIDE, TALL = 32, 8, 8, 16
"""Columns (or keys) of a step; of a chunk; keys (or columns) of an instruction's result, and its rows."""
SPANS = UNIT // SPAN
LARGEST = 128
"""Head size up to which a block's queries and scores fit 48 KiB of shared memory, and its sums registers."""
SCORES = UNIT + 4
"""Numbers from a row of scores to the next: rows 0 and 1 are in different banks."""
SHIFT, LOW = np.int32(16), np.int32(0xFFFF)
EXPONENT, MOST_EXPONENT, INVERSE = np.int32(0x7F800000), np.int32(0x7E800000), np.int32(0x7F000000)


def suits(head_size, dtype):
    """Whether attention over such a cache is computed so."""
    return dtype == "f16" and head_size <= LARGEST


def spans(head_size):
    return -(-head_size // SPAN)


def row_words(head_size):
    """Words from a row of halves in shared memory to the next: eight lanes' 16 bytes of two rows are in different banks."""
    words = spans(head_size) * SPAN // 2
    return words + (16 if words % 32 == 0 else 0)


@device
def split(x):
    """The nearest f16 of x, and that of what is left, as bits."""
    upper = float_to_half(x)
    return upper, float_to_half(x - half_to_float(upper))


@device
def split_pair(x, y):
    """Two numbers as a word of upper halves and a word of lower ones."""
    a, b = split(x)
    c, d = split(y)
    return a | c << SHIFT, b | d << SHIFT


@device
def column_of(query, at, column, columns):
    return query[at + column] if column < columns else ZERO


@device
def store_query(words, upper, lower, query, at, columns, padded):
    """A warp splits query[at ..] into two rows of shared words. columns: 0 for a row that is not there. -> the power of two"""
    lane, most = cuda.threadIdx.x % WARP, ZERO
    for start in range(0, padded, WARP):
        size = abs(column_of(query, at, start + lane, columns))
        if size > most:
            most = size
    power, exponent = ONE, min(float_bits(lane_max(most)) & EXPONENT, MOST_EXPONENT)
    if exponent != 0:
        power = bits_float(exponent)
    inverse = bits_float(INVERSE - float_bits(power))
    for start in range(0, padded // 2, WARP):
        word = start + lane
        if word < padded // 2:
            x, y = column_of(query, at, 2 * word, columns), column_of(query, at, 2 * word + 1, columns)
            words[upper + word], words[lower + word] = split_pair(product(x, inverse), product(y, inverse))
    return power


@device
def weights_of(scores, at):
    """Eight weights of a row, split: upper halves, lower halves, four words each."""
    a, b, c, d = shared_floats(scores, at)
    h0, l0 = split_pair(a, b)
    h1, l1 = split_pair(c, d)
    a, b, c, d = shared_floats(scores, at + 4)
    h2, l2 = split_pair(a, b)
    h3, l3 = split_pair(c, d)
    return h0, h1, h2, h3, l0, l1, l2, l3


@device
def known(word, count):
    """A word of two values, of which the first `count` are there; the others are 0."""
    return word if count > 1 else word & LOW if count == 1 else np.int32(0)


@device
def mask(words, i, count):
    """Chunk i of `words`, of whose values the first `count` are there."""
    for j in range(4):
        words[4 * i + j] = known(words[4 * i + j], count - 2 * j)


@device
def add_span(sums, i, h0, h1, h2, h3, k0, k1, k2, k3, l0, l1, l2, l3, m0, m1, m2, m3, words):
    """sums[4 i ..], a result's elements (g, 2 q), (g, 2 q + 1) and those of row g + 8, plus a span's products. h, l: row g's halves;
    k, m: row g + 8's; words: chunk i is a column's."""
    b0, b1, b2, b3 = words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]
    c0, c1, c2, c3 = sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]
    c0, c1, c2, c3 = mma_f16(h0, k0, h1, k1, b0, b1, c0, c1, c2, c3)
    c0, c1, c2, c3 = mma_f16(l0, m0, l1, m1, b0, b1, c0, c1, c2, c3)
    c0, c1, c2, c3 = mma_f16(h2, k2, h3, k3, b2, b3, c0, c1, c2, c3)
    c0, c1, c2, c3 = mma_f16(l2, m2, l3, m3, b2, b3, c0, c1, c2, c3)
    sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3] = c0, c1, c2, c3
