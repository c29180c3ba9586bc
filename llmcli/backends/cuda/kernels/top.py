"""Statistics of logits: the largest, in order, and log-sum-exp and entropy of the softmax.

`parts` takes pieces of 8,192 logits, a block of threads each: the `keep` largest of the piece (ranks.py: digits of 8 bits, counted in
shared memory; nothing is sorted), and of its softmax the maximum, the sum of e^(logit - maximum) and of that times (logit - maximum):
e^x in f32, sums in f64, each thread's logits ascending, lanes by exchange, warps ascending. `whole` does the same with the pieces'
largest, a block a row, puts them in order by counting, and adds up the statistics. Bytes: the logits once; 8 keep bytes for
each piece. Both launches wait for latency: some eight rounds of barriers each.
"""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import exp
from llmcli.backends.cuda.kernels.platform import SIMULATED, WARP, cuda, device, kernel, lane_max, lane_sum
from llmcli.backends.cuda.kernels.ranks import COARSE, DIGITS, LOWEST, STATE, id_of, kth, logit_of, order, rank
from llmcli.backends.cuda.kernels.step import ROWS_IN_STEP
from llmcli.backends.cuda.kernels.sums import block_sum
from llmcli.ops import TOP

F = np.float32
PIECE = 8192 if not SIMULATED else 96
BLOCK = 512 if not SIMULATED else 32
WHOLE_BLOCK = 512 if not SIMULATED else 64
WARPS = BLOCK // WARP
STATISTICS = 3
"""f64 numbers for each piece: maximum, sum, weighted sum."""
MINUS_INFINITY, ZERO, FAR = F(-np.inf), F(0), F(-150)
NOTHING = np.float64(0)
sum_of_block = block_sum(WARPS)


@device
def of_keys(keys, start, i):
    return rank(keys[i], start + i)


@device
def of_ranks(ranks, start, i):
    return ranks[start + i]


kth_key, kth_rank = kth(BLOCK, of_keys), kth(WHOLE_BLOCK, of_ranks)


@kernel
def parts(step, logits, logits_start, logits_stride, vocab, keep, ranks, statistics):
    """ranks: i64 [R][pieces][keep]; statistics: f64 [R][pieces][STATISTICS]. The grid is (pieces, R)."""
    keys = cuda.shared.array(PIECE, np.int32)
    histogram = cuda.shared.array(DIGITS, np.int32)
    coarse = cuda.shared.array(COARSE, np.int32)
    state = cuda.shared.array(STATE, np.int64)
    maxima = cuda.shared.array(WARPS, np.float32)
    sums = cuda.shared.array(WARPS, np.float64)
    taken = cuda.shared.array(1, np.int32)
    piece, row, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    if row >= step[ROWS_IN_STEP]:
        return
    first = piece * PIECE
    n = min(PIECE, vocab - first)
    start = logits_start + row * logits_stride + first
    most = MINUS_INFINITY
    for i in range(thread, n, BLOCK):
        x = logits[start + i]
        keys[i] = order(x)
        if x > most:
            most = x
    most = lane_max(most)
    if thread % WARP == 0:
        maxima[thread // WARP] = most
    if thread == 0:
        taken[0] = 0
    cuda.syncthreads()
    for i in range(WARPS):
        if maxima[i] > most:
            most = maxima[i]
    centre = most if most > MINUS_INFINITY else ZERO
    weights, weighted = NOTHING, NOTHING
    for i in range(thread, n, BLOCK):
        x = logits[start + i] - centre
        if x < FAR:  # e^x is 0, and -infinity must not meet it
            x = FAR
        weight = np.float64(exp(x))
        weights = weights + weight
        weighted = weighted + weight * np.float64(x)
    weights, weighted = sum_of_block(weights, sums), sum_of_block(weighted, sums)
    at = row * cuda.gridDim.x + piece
    if thread == 0:
        statistics[at * STATISTICS] = most
        statistics[at * STATISTICS + 1] = weights
        statistics[at * STATISTICS + 2] = weighted
    lowest = kth_key(keys, first, n, keep, histogram, coarse, state)
    for i in range(thread, n, BLOCK):
        own = rank(keys[i], first + i)
        if own >= lowest:
            ranks[at * keep + cuda.atomic.add(taken, 0, 1)] = own
    for i in range(n + thread, keep, BLOCK):  # a piece of fewer logits
        ranks[at * keep + i] = LOWEST


@kernel
def whole(step, ranks, statistics, pieces, keep, ids, values, stats):
    """ids: i32 [R][keep]; values: f32 [R][keep]; stats: f64 [R][2], log-sum-exp and entropy. keep <= TOP. The grid is R."""
    histogram = cuda.shared.array(DIGITS, np.int32)
    coarse = cuda.shared.array(COARSE, np.int32)
    state = cuda.shared.array(STATE, np.int64)
    chosen = cuda.shared.array(TOP, np.int64)
    taken = cuda.shared.array(1, np.int32)
    row, thread = cuda.blockIdx.x, cuda.threadIdx.x
    if row >= step[ROWS_IN_STEP]:
        return
    if thread == 0:
        taken[0] = 0
    start, n = row * pieces * keep, pieces * keep
    lowest = kth_rank(ranks, start, n, keep, histogram, coarse, state)
    cuda.syncthreads()
    for i in range(thread, n, WHOLE_BLOCK):
        own = ranks[start + i]
        if own >= lowest:
            chosen[cuda.atomic.add(taken, 0, 1)] = own
    cuda.syncthreads()
    for i in range(thread, keep, WHOLE_BLOCK):
        own, place = chosen[i], 0
        for j in range(keep):
            if chosen[j] > own:
                place += 1
        ids[row * keep + place] = id_of(own)
        values[row * keep + place] = logit_of(own)
    # every warp does the same: lanes are pieces
    lane, most = thread % WARP, np.float64(MINUS_INFINITY)
    for i in range(lane, pieces, WARP):
        most = max(most, statistics[(row * pieces + i) * STATISTICS])
    most = lane_max(most)
    weights, weighted = NOTHING, NOTHING
    for i in range(lane, pieces, WARP):
        at = (row * pieces + i) * STATISTICS
        sum_ = statistics[at + 1]
        if sum_ != NOTHING:  # else all of the piece is far below, -infinity perhaps
            below = statistics[at] - most
            factor = math.exp(below)
            weights = weights + sum_ * factor
            weighted = weighted + (statistics[at + 2] + sum_ * below) * factor
    weights, weighted = lane_sum(weights), lane_sum(weighted)
    if thread == 0:
        stats[row * 2] = most + math.log(weights)
        stats[row * 2 + 1] = math.log(weights) - weighted / weights


def pieces(vocab):
    """Pieces of a row of logits."""
    return -(-vocab // PIECE)


def top(most, vocab):
    """(kernel, grid, block) of `parts` and of `whole`, for up to `most` rows."""
    return (parts, (pieces(vocab), most), BLOCK), (whole, most, WHOLE_BLOCK)
