"""Attention for many tokens over a cache in f16, on the tensor cores (halves.py has the order of arithmetic, attention.py the rest).

A block of 128 threads takes 32 rows, a row being a token and one of the query heads of a kv head, and walks through the units of 128 keys
that any of them sees. Its warps are two by two: 16 rows each, and of a unit half of the keys, then half of the columns; in between each
weighs 8 rows. Bytes: keys and values once for 32 rows, from the L2 cache, twice from the L1 cache. For each unit and 16 rows of 128
columns: 512 mma, 128 loads of 16 bytes, and some 3,000 instructions of weighing, which other warps' mma hide.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.attention import (
    MINUS_INFINITY,
    NOTHING,
    ONE,
    UNIT,
    WARPS,
    ZERO,
    F,
    add_unit,
    first_seen,
    same_sequence,
    weigh,
)
from llmcli.backends.cuda.kernels.cache import HeadLayout, block_byte
from llmcli.backends.cuda.kernels.chunks import load
from llmcli.backends.cuda.kernels.halves import CHUNK, SCORES, SPANS, TALL, WIDE, add_span, mask, row_words, spans, store_query, weights_of
from llmcli.backends.cuda.kernels.platform import WARP, cuda, fma, kernel, made, product, shared16
from llmcli.backends.cuda.kernels.step import HEADER, MOST, OWNERS, POSITIONS
from llmcli.kv import BLOCK

ROWS = 2 * TALL
OWN = ROWS // WARPS
"""Rows that a warp weighs."""
KEYS = UNIT // 2 // WIDE
"""Instructions side by side for a warp's keys."""


@made
def prompt(head_size, group):
    """The kernel for query heads in groups of `group` to a kv head."""
    layout, span_count, stride = HeadLayout(head_size, "f16"), spans(head_size), row_words(head_size)
    key_chunks, key_bytes, head_bytes = layout.key_chunks, layout.key_bytes, layout.head_bytes
    columns = -(-head_size // (WIDE * 2))  # instructions side by side for a warp's columns
    ragged = key_chunks % 4 != 0  # lanes of the last span have no columns
    padded, query_room, score_room, lower = span_count * 32, 2 * ROWS * stride, ROWS * SCORES, ROWS * stride
    key_room, column_room = 4 * KEYS, 4 * columns

    @kernel
    def attention_prompt(
        step, query, query_start, query_stride, cache, layer_start, block_bytes, kv_heads, scale, window, cap, slopes, has_slopes,
        sinks, has_sinks, out, out_start, out_stride,
    ):  # fmt: skip
        """cache: u8; the grid is (rows of all tokens / 32, kv heads)."""
        queries = cuda.shared.array(query_room, np.int32, alignment=16)
        scores = cuda.shared.array(score_room, np.float32, alignment=16)
        powers = cuda.shared.array(ROWS, np.float32)
        maxima = cuda.shared.array(ROWS, np.float32)
        sums = cuda.shared.array(ROWS, np.float32)
        kept = cuda.shared.array(ROWS, np.float32)
        gained = cuda.shared.array(ROWS, np.float32)
        key_words, products = cuda.local.array(key_room, np.int32), cuda.local.array(key_room, np.float32)
        value_words, totals = cuda.local.array(column_room, np.int32), cuda.local.array(column_room, np.float32)
        vectors = cuda.local.array(column_room, np.float32)
        thread, kv_head = cuda.threadIdx.x, cuda.blockIdx.y
        warp, lane, first_row, all_rows = thread // WARP, thread % WARP, cuda.blockIdx.x * ROWS, step[0] * group
        if first_row >= all_rows:
            return
        positions, owners = HEADER + POSITIONS * step[MOST], HEADER + OWNERS * step[MOST]
        real = min(ROWS, all_rows - first_row)  # rows behind them are whatever they are: no other row knows of them
        for r in range(OWN):
            if r * WARPS < real:
                mine = r * WARPS + warp
                row = first_row + mine
                at = query_start + row // group * query_stride + (kv_head * group + row % group) * head_size
                there = head_size if row < all_rows else 0
                power = store_query(queries, mine * stride, lower + mine * stride, query, at, there, padded)
                if lane == 0:
                    powers[mine] = power
        if thread < ROWS:
            sunk = has_sinks and first_row + thread < all_rows
            maxima[thread] = sinks[kv_head * group + (first_row + thread) % group] if sunk else MINUS_INFINITY
            sums[thread] = ONE if sunk else ZERO
        for i in range(column_room):
            vectors[i] = ZERO
        cuda.syncthreads()
        part, g, q = warp % 2, lane // 4, lane % 4
        upper_row, lower_row = warp // 2 * TALL + g, warp // 2 * TALL + g + 8
        token, stop = first_row // group, (min(first_row + ROWS, all_rows) - 1) // group + 1
        while token < stop:
            after, low, high = same_sequence(step, owners, positions, token, stop, window)
            for unit in range(low // UNIT, high // UNIT + 1):
                base = unit * UNIT
                start = block_byte(step, token, base // BLOCK, layer_start, block_bytes) + kv_head * head_bytes
                # 16 rows by half of the keys
                for i in range(key_room):
                    products[i] = ZERO
                at = start + (base % BLOCK + part * (UNIT // 2) + g) * 16
                for s in range(span_count):
                    chunk = 4 * s + q
                    for i in range(KEYS):
                        load(cache, at + (min(chunk, key_chunks - 1) * BLOCK + i * WIDE) * 16, key_words, i)
                    h0, h1, h2, h3 = shared16(queries, upper_row * stride + chunk * 4)
                    k0, k1, k2, k3 = shared16(queries, lower_row * stride + chunk * 4)
                    l0, l1, l2, l3 = shared16(queries, lower + upper_row * stride + chunk * 4)
                    m0, m1, m2, m3 = shared16(queries, lower + lower_row * stride + chunk * 4)
                    if ragged and s == span_count - 1:
                        for i in range(KEYS):
                            mask(key_words, i, CHUNK if chunk < key_chunks else 0)
                    for i in range(KEYS):
                        add_span(products, i, h0, h1, h2, h3, k0, k1, k2, k3, l0, l1, l2, l3, m0, m1, m2, m3, key_words)
                for i in range(KEYS):
                    for e in range(4):
                        row = upper_row if e < 2 else lower_row
                        to = row * SCORES + part * (UNIT // 2) + i * WIDE + 2 * q + e % 2
                        scores[to] = product(products[4 * i + e], powers[row])
                cuda.syncthreads()
                for r in range(OWN):
                    if r * WARPS < real:
                        mine = r * WARPS + warp
                        row = first_row + mine
                        first, position, slope = 1, 0, ZERO  # sees nothing
                        if token * group <= row < after * group and row < all_rows:
                            position = step[positions + row // group]
                            first = first_seen(position, window)
                            if has_slopes:
                                slope = slopes[kv_head * group + row % group]
                        most, sum_ = weigh(scores, mine * SCORES, base, first, position, F(scale), F(cap), slope)
                        if lane == 0:
                            add_unit(maxima, sums, kept, gained, mine, most, sum_)
                cuda.syncthreads()
                # 16 rows by half of the columns
                for i in range(column_room):
                    totals[i] = ZERO
                at = start + key_bytes + base % BLOCK // CHUNK * (head_size * 16)
                for s in range(SPANS):
                    chunk = 4 * s + q
                    for i in range(columns):
                        column = min((part * columns + i) * WIDE + g, head_size - 1)
                        load(cache, at + (chunk * head_size + column) * 16, value_words, i)
                    if high + 1 - base < UNIT:  # some are not written
                        for i in range(columns):
                            mask(value_words, i, high + 1 - (base + chunk * CHUNK))
                    h0, h1, h2, h3, l0, l1, l2, l3 = weights_of(scores, upper_row * SCORES + chunk * CHUNK)
                    k0, k1, k2, k3, m0, m1, m2, m3 = weights_of(scores, lower_row * SCORES + chunk * CHUNK)
                    for i in range(columns):
                        add_span(totals, i, h0, h1, h2, h3, k0, k1, k2, k3, l0, l1, l2, l3, m0, m1, m2, m3, value_words)
                for e in range(4):
                    row = upper_row if e < 2 else lower_row
                    keep, gain = kept[row], gained[row]
                    if gain != NOTHING:
                        for i in range(columns):
                            vectors[4 * i + e] = fma(totals[4 * i + e], gain, product(vectors[4 * i + e], keep))
                cuda.syncthreads()
            token = after
        for e in range(4):
            mine = upper_row if e < 2 else lower_row
            row = first_row + mine
            if row < all_rows:
                inverse = ONE / sums[mine]
                to = out_start + row // group * out_stride + (kv_head * group + row % group) * head_size
                for i in range(columns):
                    column = (part * columns + i) * WIDE + 2 * q + e % 2
                    if column < head_size:
                        out[to + column] = product(vectors[4 * i + e], inverse)

    return attention_prompt
