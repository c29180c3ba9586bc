"""out = softmax(scores) @ values over the KV cache (its layout: cache.py): what the kernels for one token and for prompts share.

The order of arithmetic, in both: keys in units of 128 by position. In a unit: q.k by fma over the head's columns ascending, times
scale; the scores' maximum; weights e^(score - maximum), added up in 32 lanes (each its keys ascending) and by exchange of lanes;
values by fma over the keys of each strip of 32 ascending, from 0, and strips ascending. Units are merged in ascending order, as
`factors` says. A key that a query may not see has weight 0, which changes no bit. So a token's numbers are the same bits alone
and in a prompt: all of this is either these functions or a chain of fma in a stated order. Over a cache in f16 the products are on the
tensor cores instead, in the order that halves.py says.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import exp, tanh
from llmcli.backends.cuda.kernels.platform import WARP, cuda, device, fma, lane_max, lane_sum, product

F = np.float32
WARPS = 4
STRIP = WARP
UNIT = WARPS * STRIP
"""Keys that share a maximum; half a block of the cache."""
THREADS = UNIT
MINUS_INFINITY, ZERO, ONE = F(-np.inf), F(0), F(1)
NOTHING = F(-1)
"""What a row gains from a unit of which it sees no key."""


@device
def first_seen(position, window):
    """The first position that a query at `position` sees."""
    return max(position + 1 - window, 0) if window else 0


@device
def weigh(scores, row, base, first, position, scale, cap, slope):
    """A warp turns the products q.k of the keys base .. base + 127 at scores[row ..] into weights of a query that sees the keys
    first .. position. -> (maximum, sum) in every lane; (0, 0) where it sees none."""
    lane = cuda.threadIdx.x % WARP
    most = MINUS_INFINITY
    for i in range(WARPS):
        at = lane + i * WARP
        key = base + at
        score = product(scores[row + at], scale)
        if cap != ZERO:
            score = product(cap, tanh(score / cap))
        if slope != ZERO:
            score = fma(slope, F(key - position), score)
        if key < first or key > position:
            score = MINUS_INFINITY
        scores[row + at] = score
        if score > most:
            most = score
    most = lane_max(most)
    if most == MINUS_INFINITY:
        most = ZERO
    sum_ = ZERO
    for i in range(WARPS):
        at = lane + i * WARP
        weight = exp(scores[row + at] - most)
        scores[row + at] = weight
        sum_ = sum_ + weight
    return most, lane_sum(sum_)


@device
def factors(old, new):
    """What the sums so far (maximum `old`, MINUS_INFINITY: none) and a unit's (maximum `new`) are multiplied by when they are
    added: sum = fma(unit's sum, gain, sum * keep), and so the vectors. -> (keep, gain, maximum of both)"""
    if old == MINUS_INFINITY:
        return ZERO, ONE, new
    most = old if old > new else new
    return exp(old - most), exp(new - most), most


@device
def add_unit(maxima, sums, kept, gained, row, most, sum_):
    """A row's maximum and sum take up a unit's. kept, gained: the factors for its vectors; gained is NOTHING where it sees no key."""
    gained[row] = NOTHING
    if sum_ != ZERO:
        keep, gain, most = factors(maxima[row], most)
        kept[row], gained[row], maxima[row] = keep, gain, most
        sums[row] = fma(sum_, gain, product(sums[row], keep))


@device
def same_sequence(step, owners, positions, token, stop, window):
    """The tokens token .. after - 1 are of one sequence. -> (after, first and last position that any of them sees)"""
    owner, after = step[owners + token], token
    low, high = 1 << 30, 0
    while after < stop and step[owners + after] == owner:
        low = min(low, first_seen(step[positions + after], window))
        high = max(high, step[positions + after])
        after += 1
    return after, low, high
