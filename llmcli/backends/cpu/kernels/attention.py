"""out = softmax(scores) @ values over the KV cache (its layout: kv.py), reading keys and values once for all queries
that share them.

The order of arithmetic, whatever the kernel, the tile or the number of tokens: keys in blocks of 256 by position. In a
block: scores scale * q.k; their maximum; weights e^(score - maximum), added up in 16 lanes and a fixed tree; the weighted sum of
values (attention_floats.py, attention_codes.py). Blocks are merged in ascending order. A key that a query may not see has
weight 0, which changes no bit.

What bounds it: one token streams keys and values from memory; many are bound by products, beside
some 20 to 30 instructions for the weights of a query and 16 keys.

A `part` is one query's (vector [Dp], maximum, sum) over some keys; f32.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels import attention_codes, attention_floats
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import exp
from llmcli.backends.cpu.kernels.threads import atomic_add, store_release
from llmcli.backends.cpu.kernels.vectors import (
    choose,
    field,
    first_lanes,
    fma,
    lane,
    load_f32,
    load_f32x16,
    splat,
    store_f32,
    store_first,
    store_vector,
)
from llmcli.backends.cpu.kernels.visible import MINUS_INFINITY, first_seen, owner_of, position_of
from llmcli.backends.cpu.records import ATTENTION, HEADER, SHARED_ATTENTION
from llmcli.backends.cpu.tiles import BLOCK, attention_tile

F = np.float32


def functions(head_size, dtype, group, tokens):
    """The device functions (pack, attend, start, merge, finish) for up to `tokens` tokens x `group` heads, which are the
    queries of one kv head: query i is head i % group of token first + i // group. Addresses: see tiles.AttentionTile.

    pack(args, kv head, first token, count of queries, packed) prepares them; attend(args, kv head, first token, count, block,
    packed, scores, parts) makes the part of each over one block."""
    part_bytes, columns = attention_tile(head_size, group * tokens).part_bytes, (head_size + 15) & -16
    inner = attention_codes if dtype in attention_codes.BYTES else attention_floats
    pack, attend = inner.functions(head_size, dtype, group, tokens)

    @inline
    def start(args, kv_head, count, states):
        """Parts over no keys; a sink is a score without a value."""
        sinks = field(args, ATTENTION.sinks)
        for i in range(count):
            state = states + i * part_bytes
            for at in range(0, columns, 16):
                store_vector(state + at * 4, splat(F(0)))
            store_f32(state + columns * 4, load_f32(sinks + (kv_head * group + i % group) * 4) if sinks else MINUS_INFINITY)
            store_f32(state + columns * 4 + 4, F(1) if sinks else F(0))

    @inline
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

    @inline
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
