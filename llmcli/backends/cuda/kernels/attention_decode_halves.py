"""Attention for few tokens over a cache in f16, on the tensor cores: attention_decode.py's decode with the products of halves.py.

A block of 128 threads computes units `share`, `share` + shares, ... for one token and up to eight query heads of one kv head, which are
rows of the instructions; their other eight rows are zeros. In a unit: a warp has 32 keys, then weighs a head's scores, then has a quarter
of the columns for all keys. Bytes: keys and values of the unit once, in 16-byte loads. Few rows more or less cost nothing: reading
bounds it.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.attention import UNIT, WARPS, ZERO, F, first_seen, weigh
from llmcli.backends.cuda.kernels.cache import HeadLayout, block_byte
from llmcli.backends.cuda.kernels.chunks import load
from llmcli.backends.cuda.kernels.halves import CHUNK, SCORES, SPANS, WIDE, add_span, mask, row_words, spans, store_query, weights_of
from llmcli.backends.cuda.kernels.platform import WARP, cuda, kernel, made, product, shared16
from llmcli.backends.cuda.kernels.step import HEADER, MOST, POSITIONS
from llmcli.kv import BLOCK

ROWS = 8
KEYS = UNIT // WARPS // WIDE
"""Instructions side by side for a warp's keys."""
NO = np.int32(0)


@made
def decode(head_size, group, tile):
    """The kernel for query heads in groups of `group` to a kv head, `tile` of them in a block, at most eight."""
    layout, span_count, stride = HeadLayout(head_size, "f16"), spans(head_size), row_words(head_size)
    key_chunks, key_bytes, head_bytes = layout.key_chunks, layout.key_bytes, layout.head_bytes
    tiles, weigh_steps = -(-group // tile), -(-tile // WARPS)
    columns = -(-head_size // (WIDE * WARPS))  # instructions side by side for a warp's columns
    ragged = key_chunks % 4 != 0  # lanes of the last span have no columns
    padded, query_room, score_room, lower = span_count * 32, 2 * ROWS * stride, ROWS * SCORES, ROWS * stride
    key_room, column_room = 4 * KEYS, 4 * columns

    @kernel
    def attention_decode(
        step, query, query_start, query_stride, cache, layer_start, block_bytes, kv_heads, scale, window, cap, slopes, has_slopes,
        vectors, extents, most_units,
    ):  # fmt: skip
        """cache: u8. vectors: f32 [T][heads][most_units][D]; extents: f32 [T][heads][most_units][2], maximum and sum."""
        queries = cuda.shared.array(query_room, np.int32, alignment=16)
        scores = cuda.shared.array(score_room, np.float32, alignment=16)
        powers = cuda.shared.array(ROWS, np.float32)
        key_words, products = cuda.local.array(key_room, np.int32), cuda.local.array(key_room, np.float32)
        value_words, totals = cuda.local.array(column_room, np.int32), cuda.local.array(column_room, np.float32)
        token, thread = cuda.blockIdx.z, cuda.threadIdx.x
        kv_head, first_head = cuda.blockIdx.y // tiles, cuda.blockIdx.y % tiles * tile
        warp, lane = thread // WARP, thread % WARP
        g, q = lane // 4, lane % 4
        if token >= step[0]:
            return
        position = step[HEADER + POSITIONS * step[MOST] + token]
        first, end = first_seen(position, window), position // UNIT + 1
        unit = first // UNIT + cuda.blockIdx.x
        if unit >= end:
            return
        real = min(tile, group - first_head)  # the last block of a group may have fewer heads
        head = kv_head * group + first_head
        row = (token * kv_heads * group + head) * most_units
        for i in range(ROWS // WARPS):
            h = warp + i * WARPS
            at, there = query_start + token * query_stride + (head + h) * head_size, head_size if h < real else 0
            power = store_query(queries, h * stride, lower + h * stride, query, at, there, padded)
            if lane == 0:
                powers[h] = power
        cuda.syncthreads()
        while unit < end:
            base = unit * UNIT
            start = block_byte(step, token, base // BLOCK, layer_start, block_bytes) + kv_head * head_bytes
            # all heads by a warp's keys
            for i in range(key_room):
                products[i] = ZERO
            at = start + (base % BLOCK + warp * (UNIT // WARPS) + g) * 16
            for s in range(span_count):
                chunk = 4 * s + q
                for i in range(KEYS):
                    load(cache, at + (min(chunk, key_chunks - 1) * BLOCK + i * WIDE) * 16, key_words, i)
                h0, h1, h2, h3 = shared16(queries, g * stride + chunk * 4)
                l0, l1, l2, l3 = shared16(queries, lower + g * stride + chunk * 4)
                if ragged and s == span_count - 1:
                    for i in range(KEYS):
                        mask(key_words, i, CHUNK if chunk < key_chunks else 0)
                for i in range(KEYS):
                    add_span(products, i, h0, h1, h2, h3, NO, NO, NO, NO, l0, l1, l2, l3, NO, NO, NO, NO, key_words)
            for i in range(KEYS):
                to = g * SCORES + warp * (UNIT // WARPS) + i * WIDE + 2 * q
                scores[to], scores[to + 1] = product(products[4 * i], powers[g]), product(products[4 * i + 1], powers[g])
            cuda.syncthreads()
            # a warp weighs a head's scores; rows beyond the heads are weighed too, and nobody looks at them
            for i in range(weigh_steps):
                h = warp + i * WARPS
                slope = slopes[head + h] if has_slopes and h < real else ZERO
                most, sum_ = weigh(scores, h * SCORES, base, first, position, F(scale), F(cap), slope)
                if lane == 0 and h < real:
                    to = (row + h * most_units + unit) * 2
                    extents[to], extents[to + 1] = most, sum_
            cuda.syncthreads()
            # all heads by a warp's columns
            for i in range(column_room):
                totals[i] = ZERO
            at = start + key_bytes + base % BLOCK // CHUNK * (head_size * 16)
            for s in range(SPANS):
                chunk = 4 * s + q
                for i in range(columns):
                    column = min((warp * columns + i) * WIDE + g, head_size - 1)
                    load(cache, at + (chunk * head_size + column) * 16, value_words, i)
                if position + 1 - base < UNIT:  # some are not written
                    for i in range(columns):
                        mask(value_words, i, position + 1 - (base + chunk * CHUNK))
                h0, h1, h2, h3, l0, l1, l2, l3 = weights_of(scores, g * SCORES + chunk * CHUNK)
                for i in range(columns):
                    add_span(totals, i, h0, h1, h2, h3, NO, NO, NO, NO, l0, l1, l2, l3, NO, NO, NO, NO, value_words)
            for i in range(columns):
                for e in range(2):
                    column = (warp * columns + i) * WIDE + 2 * q + e
                    if column < head_size and g < real:
                        vectors[(row + g * most_units + unit) * head_size + column] = totals[4 * i + e]
            cuda.syncthreads()
            unit += cuda.gridDim.x

    return attention_decode
