"""Attention for many tokens: a block of 128 threads takes 32 rows, a row being a token and one of the query heads of a kv head, and
walks through the units of 128 keys that any of them sees. The order of arithmetic: attention.py.

A warp computes 8 of the rows by itself: its lanes are keys (4 each: so each query number read from shared memory meets 4 keys), then
weigh, then are columns (up to 4 each for 128 columns), with the rows' sums in registers. Arithmetic: f32 fma, 4 D of them a row and
key for scores and values together, which is the limit (a quarter of those that a causal mask hides in the last unit are computed in
vain); bytes: keys and values once for 32 rows, from the L2 cache, four times from the L1 cache.
Rows of several sequences: one after the other, each with the whole block; what does not belong sees no key.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels import attention_prompt_halves, halves
from llmcli.backends.cuda.kernels.attention import (
    MINUS_INFINITY,
    NOTHING,
    ONE,
    THREADS,
    UNIT,
    WARPS,
    ZERO,
    F,
    add_unit,
    first_seen,
    same_sequence,
    weigh,
)
from llmcli.backends.cuda.kernels.cache import SCALES_BYTES, HeadLayout, block_byte
from llmcli.backends.cuda.kernels.chunks import UNPACK, dot4, load, load_float, scale_weights, shared_floats
from llmcli.backends.cuda.kernels.platform import SIMULATED, WARP, cuda, fma, kernel, made, product
from llmcli.backends.cuda.kernels.step import HEADER, MOST, OWNERS, POSITIONS
from llmcli.kv import BLOCK

KEYS = UNIT // WARP
"""Keys of a lane."""


def rows_of_warp(head_size):
    """Rows that a warp computes: 8, or 4 where their sums would not fit registers. Few in the simulator, so that edges are met."""
    return 2 if SIMULATED else 8 if head_size <= 128 else 4


@made
def prompt(head_size, dtype, group):
    """The kernel for query heads in groups of `group` to a kv head."""
    layout = HeadLayout(head_size, dtype)
    unpack, chunk, key_chunks, key_bytes, head_bytes = UNPACK[dtype], layout.chunk, layout.key_chunks, layout.key_bytes, layout.head_bytes
    own = rows_of_warp(head_size)
    rows, padded, columns, quads = own * WARPS, key_chunks * chunk, -(-head_size // WARP), chunk // 4
    query_room, score_room, product_room, sum_room = rows * padded, rows * UNIT, own * KEYS, own * columns
    key_words, key_room, value_words, value_room = KEYS * 4, KEYS * chunk, columns * 4, columns * chunk
    strip_groups, coded, scales_start = WARP // chunk, dtype == "int8", layout.scales_start

    @kernel
    def attention_prompt(
        step, query, query_start, query_stride, cache, layer_start, block_bytes, kv_heads, scale, window, cap, slopes, has_slopes,
        sinks, has_sinks, out, out_start, out_stride,
    ):  # fmt: skip
        """cache: u8; the grid is (rows of all tokens / 32, kv heads)."""
        queries = cuda.shared.array(query_room, np.float32, alignment=16)
        scores = cuda.shared.array(score_room, np.float32, alignment=16)
        maxima = cuda.shared.array(rows, np.float32)
        sums = cuda.shared.array(rows, np.float32)
        kept = cuda.shared.array(rows, np.float32)
        gained = cuda.shared.array(rows, np.float32)
        key_loads, key = cuda.local.array(key_words, np.int32), cuda.local.array(key_room, np.float32)
        value_loads, value = cuda.local.array(value_words, np.int32), cuda.local.array(value_room, np.float32)
        products, strips = cuda.local.array(product_room, np.float32), cuda.local.array(sum_room, np.float32)
        totals, vectors = cuda.local.array(sum_room, np.float32), cuda.local.array(sum_room, np.float32)
        thread, kv_head = cuda.threadIdx.x, cuda.blockIdx.y
        warp, lane, first_row, all_rows = thread // WARP, thread % WARP, cuda.blockIdx.x * rows, step[0] * group
        if first_row >= all_rows:
            return
        positions, owners = HEADER + POSITIONS * step[MOST], HEADER + OWNERS * step[MOST]
        for i in range(thread, query_room, THREADS):
            row, column = first_row + i // padded, i % padded
            queries[i] = ZERO
            if row < all_rows and column < head_size:
                at = query_start + row // group * query_stride + (kv_head * group + row % group) * head_size
                queries[i] = query[at + column]
        if thread < rows:
            sunk = has_sinks and first_row + thread < all_rows
            maxima[thread] = sinks[kv_head * group + (first_row + thread) % group] if sunk else MINUS_INFINITY
            sums[thread] = ONE if sunk else ZERO
        for i in range(sum_room):
            vectors[i] = ZERO
        cuda.syncthreads()
        token, stop = first_row // group, (min(first_row + rows, all_rows) - 1) // group + 1
        while token < stop:
            after, low, high = same_sequence(step, owners, positions, token, stop, window)
            for unit in range(low // UNIT, high // UNIT + 1):
                base = unit * UNIT
                start = block_byte(step, token, base // BLOCK, layer_start, block_bytes) + kv_head * head_bytes
                # lanes are keys
                for i in range(product_room):
                    products[i] = ZERO
                at = start + (base % BLOCK + lane) * 16
                for c in range(key_chunks):
                    for k in range(KEYS):
                        load(cache, at + (c * BLOCK + k * WARP) * 16, key_loads, k)
                    for k in range(KEYS):
                        unpack(key_loads, k, key, k * chunk)
                    for r in range(own):
                        for q in range(quads):
                            w, x, y, z = shared_floats(queries, (warp * own + r) * padded + c * chunk + q * 4)
                            for k in range(KEYS):
                                products[r * KEYS + k] = dot4(w, x, y, z, key, k * chunk + q * 4, products[r * KEYS + k])
                for k in range(KEYS):
                    at = base % BLOCK + k * WARP + lane
                    key_scale = load_float(cache, start + scales_start + at * 4) if coded else ONE
                    for r in range(own):
                        found = products[r * KEYS + k]
                        scores[(warp * own + r) * UNIT + k * WARP + lane] = product(found, key_scale) if coded else found
                cuda.syncthreads()
                for r in range(own):
                    mine = warp * own + r
                    row = first_row + mine
                    first, position, slope = 1, 0, ZERO  # sees nothing
                    if token * group <= row < after * group and row < all_rows:
                        position = step[positions + row // group]
                        first = first_seen(position, window)
                        if has_slopes:
                            slope = slopes[kv_head * group + row % group]
                    most, sum_ = weigh(scores, mine * UNIT, base, first, position, F(scale), F(cap), slope)
                    if coded:
                        scale_weights(cache, start + scales_start + SCALES_BYTES + base % BLOCK * 4, scores, mine * UNIT, KEYS)
                    if lane == 0:
                        add_unit(maxima, sums, kept, gained, mine, most, sum_)
                cuda.syncthreads()
                # lanes are columns
                for i in range(sum_room):
                    totals[i] = ZERO
                at = start + key_bytes + base % BLOCK // chunk * (head_size * 16)
                for strip in range(WARPS):
                    for i in range(sum_room):
                        strips[i] = ZERO
                    for g in range(strip * strip_groups, (strip + 1) * strip_groups):
                        for c in range(columns):
                            load(cache, at + (g * head_size + min(lane + c * WARP, head_size - 1)) * 16, value_loads, c)
                        for c in range(columns):
                            unpack(value_loads, c, value, c * chunk)
                        written = high + 1 - (base + g * chunk)
                        if written < chunk:
                            for c in range(columns):
                                for k in range(chunk):
                                    if k >= written:
                                        value[c * chunk + k] = ZERO
                        for r in range(own):
                            for q in range(quads):
                                w, x, y, z = shared_floats(scores, (warp * own + r) * UNIT + g * chunk + q * 4)
                                for c in range(columns):
                                    strips[r * columns + c] = dot4(w, x, y, z, value, c * chunk + q * 4, strips[r * columns + c])
                    for i in range(sum_room):
                        totals[i] = totals[i] + strips[i]
                for r in range(own):
                    keep, gain = kept[warp * own + r], gained[warp * own + r]
                    if gain != NOTHING:
                        for c in range(columns):
                            i = r * columns + c
                            vectors[i] = fma(totals[i], gain, product(vectors[i], keep))
                cuda.syncthreads()
            token = after
        for r in range(own):
            row = first_row + warp * own + r
            if row < all_rows:
                inverse = ONE / sums[warp * own + r]
                to = out_start + row // group * out_stride + (kv_head * group + row % group) * head_size
                for c in range(columns):
                    if lane + c * WARP < head_size:
                        out[to + lane + c * WARP] = product(vectors[r * columns + c], inverse)

    return attention_prompt


def attention_prompt(head_size, dtype, most, kv_heads, group):
    """(kernel, grid, block) for up to `most` tokens."""
    if halves.suits(head_size, dtype):
        tensor = attention_prompt_halves
        return tensor.prompt(head_size, group), (-(-most * group // tensor.ROWS), kv_heads), THREADS
    return prompt(head_size, dtype, group), (-(-most * group // (rows_of_warp(head_size) * WARPS)), kv_heads), THREADS
