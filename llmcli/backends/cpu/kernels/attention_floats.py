"""Attention over one block of a cache of floats: scores, weights, and the weighted sum of values, by fused multiply-add."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import exp_below
from llmcli.backends.cpu.kernels.outer import BYTES, outer
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    field,
    larger,
    largest,
    load_f32x16,
    load_first,
    splat,
    store_f32,
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
    sees_all,
    sees_nothing,
)
from llmcli.backends.cpu.records import ATTENTION
from llmcli.backends.cpu.tiles import BLOCK, attention_tile

F = np.float32


@inline
def weigh(args, head, position, base, low, high, scores, maximum_and_sum):
    """One query's scores at [low, high) of a block that starts at position base, both multiples of 16, become weights."""
    most = splat(MINUS_INFINITY)
    if plain(args) and sees_all(args, position, base + low, base + high):
        for at in range(low, high, 16):
            most = larger(load_f32x16(scores + at * 4), most)
    else:
        for at in range(low, high, 16):
            score = hide(args, position, base + at, bend(args, head, position, base + at, load_f32x16(scores + at * 4)))
            store_vector(scores + at * 4, score)
            most = larger(score, most)
    maximum = largest(most)
    if sees_nothing(args, position, base):
        maximum = F(0)  # all weights are 0
    lanes = splat(F(0))
    for at in range(low, high, 16):
        weight = exp_below(load_f32x16(scores + at * 4) - splat(maximum))
        store_vector(scores + at * 4, weight)
        lanes = lanes + weight
    store_f32(maximum_and_sum, maximum)
    store_f32(maximum_and_sum + 4, total(lanes))


def functions(head_size, dtype, group, tokens):
    """The device functions (pack, attend): see attention.functions."""
    shape = attention_tile(head_size, group * tokens)
    queries, item, part_bytes = shape.queries, BYTES[dtype], shape.part_bytes
    columns = (head_size + 15) & -16
    key_step, key_stride = shape.keys * 16, head_size * item
    zero_scores, add_keys, store_scores = outer(dtype, shape.keys, 16 * head_size * item, queries, columns * 4)
    zero_last, add_last, store_last = outer(dtype, 1, 0, queries, columns * 4)
    zero_sums, add_values, store_sums = outer(dtype, shape.columns, 16 * item, queries, BLOCK * 4)
    column_steps, column_bytes = columns // 16 // shape.columns, shape.columns * 16

    @inline
    def pack(args, kv_head, first, count, packed):
        """Queries times scale, f32 [queries of all tiles][Dp]; the last one is repeated to fill its tile."""
        scale = splat(F(as_f64(field(args, ATTENTION.scale))))
        for i in range((count + queries - 1) // queries * queries):
            j = min(i, count - 1)
            x = field(args, ATTENTION.query) + (first + j // group) * field(args, ATTENTION.query_stride)
            x += (kv_head * group + j % group) * head_size * 4
            for at in range(0, columns, 16):
                store_vector(packed + (i * columns + at) * 4, load_first(x + at * 4, head_size - at) * scale)

    @inline
    def attend(args, kv_head, first, count, block, packed, scores, parts):
        """The part of each query over one block."""
        keys = block_address(args, owner_of(args, first), block, kv_head)
        base = block * BLOCK
        for tile in range(0, count, queries):
            low, high = BLOCK, 0
            for i in range(tile, min(tile + queries, count)):
                position = position_of(args, first + i // group)
                low, high = min(low, first_seen(args, position) - base), max(high, position + 1 - base)
            low, high = max(low, 0) & -16, min(high, BLOCK)
            at, end = low, (high + 15) & -16
            while at + key_step <= end:
                acc = zero_scores()
                key, query = keys + at * key_stride, packed + tile * columns * 4
                for _ in range(head_size):
                    acc = add_keys(acc, key, query)
                    key, query = key + 16 * item, query + 4
                store_scores(scores + at * 4, 64, BLOCK * 4, acc)
                at += key_step
            while at < end:
                rest = zero_last()
                key, query = keys + at * key_stride, packed + tile * columns * 4
                for _ in range(head_size):
                    rest = add_last(rest, key, query)
                    key, query = key + 16 * item, query + 4
                store_last(scores + at * 4, 64, BLOCK * 4, rest)
                at += 16
            for m in range(queries):
                i = min(tile + m, count - 1)
                head, position = kv_head * group + i % group, position_of(args, first + i // group)
                to = parts + (tile + m) * part_bytes + columns * 4
                weigh(args, head, position, base, low, end, scores + m * BLOCK * 4, to)
            for step in range(column_steps):
                acc = zero_sums()
                value = keys + field(args, ATTENTION.key_bytes) + (low * columns + step * column_bytes) * item
                for at in range(low, high):
                    acc = add_values(acc, value, scores + at * 4)
                    value += columns * item
                store_sums(parts + tile * part_bytes + step * column_bytes * 4, 64, part_bytes, acc)

    return pack, attend
