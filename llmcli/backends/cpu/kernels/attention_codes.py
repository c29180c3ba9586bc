"""Attention over one block of a cache of codes (kv.py): both products are of integers, so exact and the same on every CPU.

A query becomes s16 codes of length CODES (the root of their squares' sum), as keys are: no score leaves 32 bits. The weights of
a block, times their values' scales, become s16 codes that add up to CODES. What rounding leaves is some 2^-16 of the length of
a query and of the sum of the weights; f16 keys have 2^-12 of each number.

For a query and 16 keys: D / 2 products of pairs for scores and as many for values, and some 30 instructions between them. These
are done step by step, each for all queries of a tile: a step ends with sums or a maximum over lanes, some 20 cycles in which
the CPU begins with the next query, where the same query's next step would have to wait.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.codes import CODES, LEAST, factor, length
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import LOG2_E, exp2_below
from llmcli.backends.cpu.kernels.pairs import BYTES, outer
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    choose,
    field,
    fma,
    greater,
    larger,
    largest,
    load_f32,
    load_f32x16,
    load_first,
    rounded,
    splat,
    store_f32,
    store_i16,
    store_vector,
    total,
)
from llmcli.backends.cpu.kernels.visible import (
    MINUS_INFINITY,
    bend,
    block_address,
    first_seen,
    hide,
    owner_of,
    plain,
    position_of,
    sees_nothing,
)
from llmcli.backends.cpu.records import ATTENTION
from llmcli.backends.cpu.tiles import BLOCK, attention_tile

F = np.float32
SCALES_BYTES = 2 * BLOCK * 4
"""At the end of a head's block: f32 scales of keys, then of values."""


@inline
def change(args, head, position, base, low, seen, high, scale, scores):
    """One query's scores at [low, high) of a block that starts at position base, all multiples of 16, where not all count as they
    are: `scale` and what bends them, and minus infinity for hidden keys, of which there are none in [low, seen)."""
    if not plain(args):
        for at in range(low, high, 16):
            store_vector(scores + at * 4, bend(args, head, position, base + at, load_f32x16(scores + at * 4) * splat(scale)))
    for at in range(seen, high, 16):
        store_vector(scores + at * 4, hide(args, position, base + at, load_f32x16(scores + at * 4)))


@inline
def find_largest(low, high, scores, sums):
    """Leaves the largest of one query's scores, f32, at `sums`."""
    most = splat(MINUS_INFINITY)
    for at in range(low, high, 16):
        most = larger(load_f32x16(scores + at * 4), most)
    store_f32(sums, largest(most))


@inline
def weigh(maximum, low, seen, high, scale, value_scales, scores, sums):
    """One query's scores become weights e^(scale * (score - maximum)) times their values' scales. sums: f32 scale * maximum, the sum of
    the weights, what a code will stand for, and its inverse."""
    scale *= LOG2_E  # weights are powers of 2
    maximum *= scale
    lanes, scaled = splat(F(0)), splat(F(0))
    for at in range(low, seen, 16):
        weight = exp2_below(fma(load_f32x16(scores + at * 4), splat(scale), splat(-maximum)))
        lanes = lanes + weight
        weight = weight * load_f32x16(value_scales + at * 4)
        store_vector(scores + at * 4, weight)
        scaled = scaled + weight
    for at in range(seen, high, 16):  # a hidden key's scale may be anything
        weight = exp2_below(fma(load_f32x16(scores + at * 4), splat(scale), splat(-maximum)))
        lanes = lanes + weight
        weight = choose(greater(weight, splat(F(0))), weight * load_f32x16(value_scales + at * 4), splat(F(0)))
        store_vector(scores + at * 4, weight)
        scaled = scaled + weight
    all_ = total(scaled)
    store_f32(sums, maximum / LOG2_E)
    store_f32(sums + 4, total(lanes))
    store_f32(sums + 8, all_ * (F(1) / CODES))
    store_f32(sums + 12, factor(CODES, all_))


@inline
def encode(low, high, scores, sums):
    """What `weigh` left becomes codes, s16 from `scores` + 2 low on."""
    grow = splat(load_f32(sums + 12))
    for at in range(low, high, 16):
        store_i16(scores + at * 2, rounded(load_f32x16(scores + at * 4) * grow))


def functions(head_size, dtype, group, tokens):
    """The device functions (pack, attend): see attention.functions."""
    shape = attention_tile(head_size, group * tokens)
    queries, item, part_bytes = shape.queries, BYTES[dtype], shape.part_bytes
    columns, pairs = (head_size + 15) & -16, (head_size + 1) // 2
    key_step, key_stride = shape.keys * 16, 2 * pairs * item
    zero_scores, add_keys, store_scores, _ = outer(dtype, shape.keys, 16 * key_stride, queries, columns * 4)
    zero_last, add_last, store_last, _ = outer(dtype, 1, 0, queries, columns * 4)
    zero_sums, add_values, _, store_sums = outer(dtype, shape.columns, 32 * item, queries, BLOCK * 4)
    column_steps, column_bytes = columns // 16 // shape.columns, shape.columns * 32

    @inline
    def pack(args, kv_head, first, count, packed):
        """The codes of queries, s16 [Dp], and their scale f32, in 4 Dp bytes each; the last one is repeated to fill its tile."""
        scale = F(as_f64(field(args, ATTENTION.scale)))
        for i in range((count + queries - 1) // queries * queries):
            j = min(i, count - 1)
            x = field(args, ATTENTION.query) + (first + j // group) * field(args, ATTENTION.query_stride)
            x += (kv_head * group + j % group) * head_size * 4
            size, to = length(x, head_size), packed + i * columns * 4
            grow = factor(CODES, size)
            for at in range(0, columns, 16):
                store_i16(to + at * 2, rounded(load_first(x + at * 4, head_size - at) * splat(grow)))
            store_f32(to + columns * 2, (size if size > LEAST else F(1)) * (F(1) / CODES) * scale)  # not 0: hidden keys are at -infinity

    @inline
    def attend(args, kv_head, first, count, block, packed, scores, parts):
        """The part of each query over one block."""
        keys = block_address(args, owner_of(args, first), block, kv_head)
        key_scales = keys + field(args, ATTENTION.head_bytes) - SCALES_BYTES
        base = block * BLOCK
        for tile in range(0, count, queries):
            low, high, start, seen = BLOCK, 0, 0, BLOCK  # some query sees the keys in [low, high), each those in [start, seen)
            for i in range(tile, min(tile + queries, count)):
                position = position_of(args, first + i // group)
                low, high = min(low, first_seen(args, position) - base), max(high, position + 1 - base)
                start, seen = max(start, first_seen(args, position) - base), min(seen, position + 1 - base)
            low, high = max(low, 0) & -16, min(high, BLOCK)
            seen = max(seen & -16, low) if start <= low else low  # only beginnings count as seen
            at, end = low, (high + 15) & -16
            while at + key_step <= end:
                acc = zero_scores()
                key, query = keys + at * key_stride, packed + tile * columns * 4
                for _ in range(pairs):
                    acc = add_keys(acc, key, query)
                    key, query = key + 32 * item, query + 4
                store_scores(scores + at * 4, 64, BLOCK * 4, key_scales + at * 4, acc)
                at += key_step
            while at < end:
                rest = zero_last()
                key, query = keys + at * key_stride, packed + tile * columns * 4
                for _ in range(pairs):
                    rest = add_last(rest, key, query)
                    key, query = key + 32 * item, query + 4
                store_last(scores + at * 4, 64, BLOCK * 4, key_scales + at * 4, rest)
                at += 16
            sums, factors = parts + tile * part_bytes + columns * 4, packed + tile * columns * 4 + columns * 2
            if seen < end or not plain(args):
                for m in range(queries):
                    i = min(tile + m, count - 1)
                    head, position = kv_head * group + i % group, position_of(args, first + i // group)
                    change(args, head, position, base, low, seen, end, load_f32(factors + m * columns * 4), scores + m * BLOCK * 4)
            for m in range(queries):
                find_largest(low, end, scores + m * BLOCK * 4, sums + m * part_bytes)
            for m in range(queries):
                scale, maximum = load_f32(factors + m * columns * 4) if plain(args) else F(1), load_f32(sums + m * part_bytes)
                if maximum == MINUS_INFINITY and sees_nothing(args, position_of(args, first + min(tile + m, count - 1) // group), base):
                    maximum = F(0)  # all weights are 0
                weigh(maximum, low, seen, end, scale, key_scales + BLOCK * 4, scores + m * BLOCK * 4, sums + m * part_bytes)
            for m in range(queries):
                encode(low, end, scores + m * BLOCK * 4, sums + m * part_bytes)
            for step in range(column_steps):
                acc = zero_sums()
                value = keys + field(args, ATTENTION.key_bytes) + (low * columns + step * column_bytes) * item
                for at in range(low, high, 2):
                    acc = add_values(acc, value, scores + at * 2)
                    value += 2 * columns * item
                store_sums(parts + tile * part_bytes + step * column_bytes * 2, 64, part_bytes, sums + 8, part_bytes, acc)

    return pack, attend
