"""out = softmax(scores) @ values over the KV cache (its layout: kv.py), reading keys and values once for all queries
that share them.

The order of arithmetic, whatever the kernel, the tile or the number of tokens: keys in blocks of 256 by position. In a
block: scores (scale * q).k by fma over the head's columns ascending; their maximum; weights e^(score - maximum), added up in
16 lanes and a fixed tree; values by fma over keys ascending. Blocks are merged in ascending order. A key that a query may
not see has weight 0, which changes no bit.

What bounds it: one token streams keys and values from memory; many are bound by fma, 2 D of them for a query and 16 keys, beside
some 20 instructions for their weights.

A `part` is one query's (vector [Dp], maximum, sum) over some keys; f32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llmcli.backends.cpu.kernels.mathematics import exp, exp_below, tanh
from llmcli.backends.cpu.kernels.outer import BYTES, outer
from llmcli.backends.cpu.kernels.threads import atomic_add, store_release
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    choose,
    field,
    first_lanes,
    fma,
    greater_i32,
    lane,
    lane_numbers,
    larger,
    largest,
    load_f32,
    load_f32x16,
    load_first,
    load_i32,
    splat,
    splat_i32,
    store_f32,
    store_first,
    store_vector,
    to_f32,
    total,
)
from llmcli.backends.cpu.records import ATTENTION, HEADER, SHARED_ATTENTION
from llmcli.backends.cpu.tiles import BLOCK, attention_tile

F = np.float32
MINUS_INFINITY = F(-np.inf)


@njit(forceinline=True)
def position_of(args, token):
    return load_i32(field(field(args, ATTENTION.header), HEADER.positions) + token * 4)


@njit(forceinline=True)
def owner_of(args, token):
    return load_i32(field(field(args, ATTENTION.header), HEADER.owners) + token * 4)


@njit(forceinline=True)
def first_seen(args, position):
    """The first position that a query at `position` sees."""
    window = field(args, ATTENTION.window)
    return max(position + 1 - window, 0) if window else 0


@njit(forceinline=True)
def block_address(args, owner, block, kv_head):
    """Where a sequence's block of one head starts."""
    header = field(args, ATTENTION.header)
    number = load_i32(field(header, HEADER.tables) + owner * field(header, HEADER.table_stride) + block * 4)
    return field(args, ATTENTION.cache) + number * field(args, ATTENTION.block_bytes) + kv_head * field(args, ATTENTION.head_bytes)


@njit(forceinline=True)
def weigh(args, head, position, base, low, high, scores, maximum_and_sum):
    """One query's scores at [low, high) of a block that starts at position base, both multiples of 16, become weights."""
    first, softcap, slopes = first_seen(args, position), field(args, ATTENTION.softcap), field(args, ATTENTION.slopes)
    most = splat(MINUS_INFINITY)
    if base + low >= first and base + high <= position + 1 and not softcap and not slopes:
        for at in range(low, high, 16):
            most = larger(load_f32x16(scores + at * 4), most)
    else:
        cap, before, last = splat(F(as_f64(softcap))), splat_i32(first - 1), splat_i32(position + 1)
        for at in range(low, high, 16):
            score = load_f32x16(scores + at * 4)
            if softcap:
                score = cap * tanh(score / cap)
            key = lane_numbers() + splat_i32(base + at)
            if slopes:
                score = fma(splat(load_f32(slopes + head * 4)), to_f32(key - splat_i32(position)), score)
            score = choose(greater_i32(key, before) & greater_i32(last, key), score, splat(MINUS_INFINITY))
            store_vector(scores + at * 4, score)
            most = larger(score, most)
    maximum = largest(most)
    if base > position or base + BLOCK <= first:
        maximum = F(0)  # it sees nothing here: all weights are 0
    lanes = splat(F(0))
    for at in range(low, high, 16):
        weight = exp_below(load_f32x16(scores + at * 4) - splat(maximum))
        store_vector(scores + at * 4, weight)
        lanes = lanes + weight
    store_f32(maximum_and_sum, maximum)
    store_f32(maximum_and_sum + 4, total(lanes))


def functions(head_size, dtype, group, tokens):
    """The device functions (pack, attend, start, merge, finish) for up to `tokens` tokens x `group` heads, which are the
    queries of one kv head: query i is head i % group of token first + i // group. Addresses: see tiles.AttentionTile."""
    shape = attention_tile(head_size, group * tokens)
    queries, item, part_bytes = shape.queries, BYTES[dtype], shape.part_bytes
    columns = (head_size + 15) & -16
    key_step, key_stride = shape.keys * 16, head_size * item
    zero_scores, add_keys, store_scores = outer(dtype, shape.keys, 16 * head_size * item, queries, columns * 4)
    zero_last, add_last, store_last = outer(dtype, 1, 0, queries, columns * 4)
    zero_sums, add_values, store_sums = outer(dtype, shape.columns, 16 * item, queries, BLOCK * 4)
    column_steps, column_bytes = columns // 16 // shape.columns, shape.columns * 16

    @njit(forceinline=True)
    def pack(args, kv_head, first, count, packed):
        """Queries times scale, f32 [queries of all tiles][Dp]; the last one is repeated to fill its tile."""
        scale = splat(F(as_f64(field(args, ATTENTION.scale))))
        for i in range((count + queries - 1) // queries * queries):
            j = min(i, count - 1)
            x = field(args, ATTENTION.query) + (first + j // group) * field(args, ATTENTION.query_stride)
            x += (kv_head * group + j % group) * head_size * 4
            for at in range(0, columns, 16):
                store_vector(packed + (i * columns + at) * 4, load_first(x + at * 4, head_size - at) * scale)

    @njit(forceinline=True)
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

    @njit(forceinline=True)
    def start(args, kv_head, count, states):
        """Parts over no keys; a sink is a score without a value."""
        sinks = field(args, ATTENTION.sinks)
        for i in range(count):
            state = states + i * part_bytes
            for at in range(0, columns, 16):
                store_vector(state + at * 4, splat(F(0)))
            store_f32(state + columns * 4, load_f32(sinks + (kv_head * group + i % group) * 4) if sinks else MINUS_INFINITY)
            store_f32(state + columns * 4 + 4, F(1) if sinks else F(0))

    @njit(forceinline=True)
    def merge(count, states, parts):
        """Adds a block's parts to the states before it."""
        for i in range(count):
            state, part = states + i * part_bytes, parts + i * part_bytes
            old, new = load_f32(state + columns * 4), load_f32(part + columns * 4)
            sum_ = load_f32(part + columns * 4 + 4)
            if sum_ == F(0):
                continue  # this query sees nothing of the block
            if load_f32(state + columns * 4 + 4) == F(0):  # the first that it sees something of
                for at in range(0, columns + 16, 16):
                    store_vector(state + at * 4, load_f32x16(part + at * 4))
                continue
            maximum = max(old, new)
            factors = exp(choose(first_lanes(1), splat(old - maximum), splat(new - maximum)))
            keep, gain = lane(factors, 0), lane(factors, 1)
            for at in range(0, columns, 16):
                kept = load_f32x16(state + at * 4) * splat(keep)
                store_vector(state + at * 4, fma(load_f32x16(part + at * 4), splat(gain), kept))
            store_f32(state + columns * 4, maximum)
            store_f32(state + columns * 4 + 4, load_f32(state + columns * 4 + 4) * keep + sum_ * gain)

    @njit(forceinline=True)
    def finish(args, kv_head, first, count, states):
        for i in range(count):
            state = states + i * part_bytes
            out = field(args, ATTENTION.out) + (first + i // group) * field(args, ATTENTION.out_stride)
            out += (kv_head * group + i % group) * head_size * 4
            inverse = splat(F(1) / load_f32(state + columns * 4 + 4))
            for at in range(0, columns, 16):
                store_first(out + at * 4, load_f32x16(state + at * 4) * inverse, head_size - at)

    return pack, attend, start, merge, finish


def rows(head_size, dtype, group, tokens):
    """A chunk is (`tokens` tokens, one kv head): chunk = token // tokens * kv_heads + kv head. dtype: the cache's; group:
    query heads that share a kv head."""
    shape = attention_tile(head_size, group * tokens)
    block_bytes, packed_bytes = shape.block_bytes, shape.packed_bytes
    pack, attend, start, merge, finish = functions(head_size, dtype, group, tokens)

    def kernel(args, chunk, thread):
        kv_head = chunk % field(args, ATTENTION.kv_heads)
        first = chunk // field(args, ATTENTION.kv_heads) * tokens
        end = min(first + tokens, field(field(args, ATTENTION.header), HEADER.tokens))
        states = field(args, ATTENTION.scratch) + thread * field(args, ATTENTION.scratch_bytes)
        parts, packed = states + block_bytes, states + 2 * block_bytes
        scores = packed + packed_bytes
        while first < end:
            stop = first + 1  # tokens of one sequence share its keys
            block, last = first_seen(args, position_of(args, first)) // BLOCK, position_of(args, first) // BLOCK
            while stop < end and owner_of(args, stop) == owner_of(args, first):
                block = min(block, first_seen(args, position_of(args, stop)) // BLOCK)
                last = max(last, position_of(args, stop) // BLOCK)
                stop += 1
            count = (stop - first) * group
            pack(args, kv_head, first, count, packed)
            start(args, kv_head, count, states)
            while block <= last:
                attend(args, kv_head, first, count, block, packed, scores, parts)
                merge(count, states, parts)
                block += 1
            finish(args, kv_head, first, count, states)
            first = stop

    return kernel


def shared(head_size, dtype, group):
    """The same for few tokens and long texts: chunk = (token * kv_heads + kv head) * shares + share computes every
    shares-th block, and whoever is last for a token and kv head merges all of them."""
    shape = attention_tile(head_size, group)
    block_bytes, packed_bytes = shape.block_bytes, shape.packed_bytes
    pack, attend, start, merge, finish = functions(head_size, dtype, group, 1)

    def kernel(args, chunk, thread):
        shares = field(args, SHARED_ATTENTION.shares)
        item = chunk // shares
        token, kv_head = item // field(args, ATTENTION.kv_heads), item % field(args, ATTENTION.kv_heads)
        states = field(args, ATTENTION.scratch) + thread * field(args, ATTENTION.scratch_bytes)
        packed = states + 2 * block_bytes
        scores = packed + packed_bytes
        parts = field(args, SHARED_ATTENTION.parts) + item * field(args, SHARED_ATTENTION.parts_bytes)
        first = first_seen(args, position_of(args, token)) // BLOCK
        end = position_of(args, token) // BLOCK + 1
        block = first + chunk % shares
        if block < end:
            pack(args, kv_head, token, group, packed)
        while block < end:  # range() raises an exception for a step of 0
            attend(args, kv_head, token, group, block, packed, scores, parts + block * block_bytes)
            block += shares
        counter = field(args, SHARED_ATTENTION.counters) + item * 8
        if atomic_add(counter, 1) == shares - 1:
            store_release(counter, 0)
            start(args, kv_head, group, states)
            for part in range(first, end):
                merge(group, states, parts + part * block_bytes)
            finish(args, kv_head, token, group, states)

    return kernel


KERNELS = {"rows": rows, "shared": shared}
