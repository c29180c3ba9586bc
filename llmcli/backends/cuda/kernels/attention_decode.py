"""Attention for few tokens, each with all the keys of its sequence: `decode` spreads units of 128 keys over the GPU, `merge` adds up
what they found. The order of arithmetic: attention.py.

A block of 128 threads computes units `share`, `share` + shares, ... for one token and up to `tile` query heads of one kv head, so a
fixed grid serves every position. In a unit: a thread is a key, and multiplies it with all heads' queries (shared memory); a warp
weighs a head's scores; a warp is a strip of 32 keys, its lanes are columns, for all heads; strips are added up through shared memory.
Bytes: keys and values of the unit once, in 16-byte loads, 8 or so under way in each thread; 4 (D + 2) for each unit and head
written and read again by `merge`, which for a group of 4 heads in f16 is 12% more, all in the L2 cache.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels import attention_decode_halves, halves
from llmcli.backends.cuda.kernels.attention import (
    MINUS_INFINITY,
    ONE,
    STRIP,
    THREADS,
    UNIT,
    WARPS,
    ZERO,
    F,
    factors,
    first_seen,
    weigh,
)
from llmcli.backends.cuda.kernels.cache import SCALES_BYTES, HeadLayout, block_byte
from llmcli.backends.cuda.kernels.chunks import UNPACK, dot4, load, load_float, scale_weights, shared_floats
from llmcli.backends.cuda.kernels.platform import WARP, cuda, device, fma, kernel, made, product
from llmcli.backends.cuda.kernels.quantize import RECORD, quantized, store_group
from llmcli.backends.cuda.kernels.step import HEADER, MOST, POSITIONS
from llmcli.kv import BLOCK

LOADS = 8
"""16-byte loads that a thread has under way."""
WIDE = 128
"""Head size beyond which a block takes fewer heads: its sums must fit registers and 48 KiB of shared memory."""
BLOCKS_WANTED = 1024
"""Blocks of threads that fill a large GPU: 132 processors, 8 each."""
NO_CODE = np.int32(0)


def heads_together(head_size, group):
    """Query heads of a kv head that a block computes."""
    tiles = -(-group // (8 if head_size <= WIDE else 4))
    return -(-group // tiles)


def batch(count, most):
    """The largest divisor of count that is at most `most`, or 1."""
    return max(n for n in range(1, max(most, 1) + 1) if count % n == 0)


@made
def decode(head_size, dtype, group):
    """The kernel for query heads in groups of `group` to a kv head."""
    layout = HeadLayout(head_size, dtype)
    unpack, chunk, key_chunks, key_bytes, head_bytes = UNPACK[dtype], layout.chunk, layout.key_chunks, layout.key_bytes, layout.head_bytes
    tile = heads_together(head_size, group)
    tiles, padded, columns = -(-group // tile), key_chunks * chunk, -(-head_size // WARP)
    coded, scales_start = dtype == "int8", layout.scales_start
    quads, groups, weigh_steps, part_row = chunk // 4, STRIP // chunk, -(-tile // WARPS), tile * head_size
    keys_loaded = batch(key_chunks, LOADS)
    groups_loaded = batch(groups, LOADS // columns)
    query_room, score_room, part_room = tile * padded, weigh_steps * WARPS * UNIT, WARPS * part_row
    key_words, value_words, value_room, sum_room = keys_loaded * 4, groups_loaded * columns * 4, columns * chunk, tile * columns

    @kernel
    def attention_decode(
        step, query, query_start, query_stride, cache, layer_start, block_bytes, kv_heads, scale, window, cap, slopes, has_slopes,
        vectors, extents, most_units,
    ):  # fmt: skip
        """cache: u8. vectors: f32 [T][heads][most_units][D]; extents: f32 [T][heads][most_units][2], maximum and sum."""
        queries = cuda.shared.array(query_room, np.float32, alignment=16)
        scores = cuda.shared.array(score_room, np.float32, alignment=16)
        parts = cuda.shared.array(part_room, np.float32, alignment=16)
        key_loads, key = cuda.local.array(key_words, np.int32), cuda.local.array(chunk, np.float32)
        value_loads, value = cuda.local.array(value_words, np.int32), cuda.local.array(value_room, np.float32)
        products, sums = cuda.local.array(tile, np.float32), cuda.local.array(sum_room, np.float32)
        token, thread = cuda.blockIdx.z, cuda.threadIdx.x
        kv_head, first_head = cuda.blockIdx.y // tiles, cuda.blockIdx.y % tiles * tile
        warp, lane = thread // WARP, thread % WARP
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
        for i in range(thread, query_room, THREADS):
            h, column = i // padded, i % padded
            queries[i] = ZERO
            if h < real and column < head_size:
                queries[i] = query[query_start + token * query_stride + (head + h) * head_size + column]
        cuda.syncthreads()
        while unit < end:
            base = unit * UNIT
            start = block_byte(step, token, base // BLOCK, layer_start, block_bytes) + kv_head * head_bytes
            # a thread is a key
            for h in range(tile):
                products[h] = ZERO
            at = start + (base % BLOCK + thread) * 16
            for c in range(0, key_chunks, keys_loaded):
                for i in range(keys_loaded):
                    load(cache, at + (c + i) * (BLOCK * 16), key_loads, i)
                for i in range(keys_loaded):
                    unpack(key_loads, i, key, 0)
                    for h in range(tile):
                        for q in range(quads):
                            w, x, y, z = shared_floats(queries, h * padded + (c + i) * chunk + q * 4)
                            products[h] = dot4(w, x, y, z, key, q * 4, products[h])
            key_scale = load_float(cache, start + scales_start + (base % BLOCK + thread) * 4) if coded else ONE
            for h in range(tile):
                scores[h * UNIT + thread] = product(products[h], key_scale) if coded else products[h]
            cuda.syncthreads()
            # a warp weighs a head's scores; rows beyond the heads are weighed too, and nobody looks at them
            for i in range(weigh_steps):
                h = warp + i * WARPS
                slope = slopes[head + h] if has_slopes and h < real else ZERO
                most, sum_ = weigh(scores, h * UNIT, base, first, position, F(scale), F(cap), slope)
                if coded:
                    scale_weights(cache, start + scales_start + SCALES_BYTES + base % BLOCK * 4, scores, h * UNIT, WARPS)
                if lane == 0 and h < real:
                    to = (row + h * most_units + unit) * 2
                    extents[to], extents[to + 1] = most, sum_
            cuda.syncthreads()
            # a warp is a strip of keys, its lanes are columns
            for i in range(sum_room):
                sums[i] = ZERO
            strip = warp * STRIP
            at = start + key_bytes + (base % BLOCK + strip) // chunk * (head_size * 16)
            for g in range(0, groups, groups_loaded):
                for i in range(groups_loaded):
                    for c in range(columns):
                        load(cache, at + ((g + i) * head_size + min(lane + c * WARP, head_size - 1)) * 16, value_loads, i * columns + c)
                for i in range(groups_loaded):
                    for c in range(columns):
                        unpack(value_loads, i * columns + c, value, c * chunk)
                    written = position + 1 - (base + strip + (g + i) * chunk)
                    if written < chunk:
                        for c in range(columns):
                            for k in range(chunk):
                                if k >= written:
                                    value[c * chunk + k] = ZERO
                    for h in range(tile):
                        for q in range(quads):
                            w, x, y, z = shared_floats(scores, h * UNIT + strip + (g + i) * chunk + q * 4)
                            for c in range(columns):
                                sums[h * columns + c] = dot4(w, x, y, z, value, c * chunk + q * 4, sums[h * columns + c])
            for h in range(tile):
                for c in range(columns):
                    if lane + c * WARP < head_size:
                        parts[warp * part_row + h * head_size + lane + c * WARP] = sums[h * columns + c]
            cuda.syncthreads()
            for i in range(thread, real * head_size, THREADS):
                total = ZERO
                for s in range(WARPS):
                    total = total + parts[s * part_row + i]
                vectors[(row + i // head_size * most_units + unit) * head_size + i % head_size] = total
            unit += cuda.gridDim.x

    return attention_decode


@device
def merged(step, vectors, extents, most_units, head, token, column, head_size, window, sinks, has_sinks):
    """One column of a head, from all its units; all threads of a block call it. 128 units at a time: a thread finds what one unit's
    vector and all before it are multiplied by, then each column is one chain of fma."""
    maxima = cuda.shared.array(THREADS, np.float32)
    kept = cuda.shared.array(THREADS, np.float32)
    gained = cuda.shared.array(THREADS, np.float32)
    unit_sums = cuda.shared.array(THREADS, np.float32)
    thread = cuda.threadIdx.x
    position = step[HEADER + POSITIONS * step[MOST] + token]
    end = position // UNIT + 1
    row = (token * cuda.gridDim.x + head) * most_units
    before = sinks[head] if has_sinks else MINUS_INFINITY
    sum_ = ONE if has_sinks else ZERO
    vector = ZERO
    for start in range(first_seen(position, window) // UNIT, end, THREADS):
        count = min(THREADS, end - start)
        own = extents[(row + start + thread) * 2] if thread < count else MINUS_INFINITY
        cuda.syncthreads()  # who still reads the last units' factors?
        maxima[thread] = own
        cuda.syncthreads()
        if thread < count:
            most = before
            for i in range(thread):
                if maxima[i] > most:
                    most = maxima[i]
            keep, gain, most = factors(most, own)
            kept[thread], gained[thread] = keep, gain
            unit_sums[thread] = extents[(row + start + thread) * 2 + 1]
        for i in range(count):
            if maxima[i] > before:
                before = maxima[i]
        cuda.syncthreads()
        for i in range(count):
            keep, gain = kept[i], gained[i]
            sum_ = fma(unit_sums[i], gain, product(sum_, keep))
            if column < head_size:
                vector = fma(vectors[(row + start + i) * head_size + column], gain, product(vector, keep))
    return product(vector, ONE / sum_)


@kernel
def merge(step, vectors, extents, most_units, out, out_start, out_stride, head_size, window, sinks, has_sinks):
    """A block adds up one head's units, its threads are columns."""
    head, token = cuda.blockIdx.x, cuda.blockIdx.z
    column = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if token >= step[0]:
        return
    found = merged(step, vectors, extents, most_units, head, token, column, head_size, window, sinks, has_sinks)
    if column < head_size:
        out[out_start + token * out_stride + head * head_size + column] = found


@kernel
def merge_quantize(step, vectors, extents, most_units, out, out_start, out_stride, head_size, window, sinks, has_sinks, kept, codes):
    """The same, and the result to records (quantize.py); `out` gets it only where `kept`. head_size: a multiple of 32."""
    head, token, lane = cuda.blockIdx.x, cuda.blockIdx.z, cuda.threadIdx.x % WARP
    column = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if token >= step[0]:
        return
    found = merged(step, vectors, extents, most_units, head, token, column, head_size, window, sinks, has_sinks)
    code, scale, total = quantized(found)
    if column < head_size:
        c, columns = head * head_size + column, cuda.gridDim.x * head_size
        if kept:
            out[out_start + token * out_stride + c] = found
        record, group = (token * ((columns + 255) // 256) + c // 256) * RECORD, c % 256 // WARP
        store_group(codes, record, group, lane, code, scale, total)
        if c // WARP == columns // WARP - 1:
            for behind in range(group + 1, 8):
                store_group(codes, record, behind, lane, NO_CODE, ZERO, NO_CODE)


def units(positions):
    """most_units for texts of up to so many positions."""
    return -(-positions // UNIT)


def scratch(most, heads, head_size, most_units):
    """f32 numbers of `vectors` and of `extents`, for up to `most` tokens."""
    return most * heads * most_units * head_size, most * heads * most_units * 2


def attention_decode(head_size, dtype, most, kv_heads, group, most_units):
    """(kernel, grid, block) for up to `most` tokens."""
    tiles = -(-group // heads_together(head_size, group))
    shares = min(most_units, -(-BLOCKS_WANTED // (kv_heads * tiles * most)))
    if halves.suits(head_size, dtype):
        chosen = attention_decode_halves.decode(head_size, group, heads_together(head_size, group))
    else:
        chosen = decode(head_size, dtype, group)
    return chosen, (shares, kv_heads * tiles, most), THREADS


def attention_merge(head_size, most, heads, quantize=False):
    """(kernel, grid, block) of what follows."""
    return merge_quantize if quantize else merge, (heads, -(-head_size // THREADS), most), THREADS
