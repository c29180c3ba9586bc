"""Statistics of logits: the largest, in order, and log-sum-exp and entropy of the softmax. A row is two chunks,
because a step of one token has one row.

Nothing is sorted but the result. Logits that exceed a threshold are collected with their ids; whenever the collection is
full, it is cut down to the `keep` largest, whose smallest is the new threshold. In random order some 3,000 of 50,000
logits are collected. Floats are compared as integers in the same order, where -0 is 0.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.doubles import splat_f64, total_f64, widen
from llmcli.backends.cpu.kernels.instructions import I8, I16, I64, inline, instruction, intp, mask
from llmcli.backends.cpu.kernels.mathematics import exp, log
from llmcli.backends.cpu.kernels.vectors import (
    bits,
    choose,
    field,
    first_lanes,
    floats,
    greater_i32,
    lane,
    lane_i32,
    lane_numbers,
    larger,
    largest_i32,
    load_first,
    load_i32,
    load_i32x16,
    splat,
    splat_i32,
    store_f32,
    store_f64,
    store_i32,
    store_vector,
    total_i32,
)
from llmcli.backends.cpu.records import TOP

F = np.float32
ROOM = 1024
"""Logits that the collection holds; more than 256 + 16."""
LOWEST = -(2**31)
FAR = F(-150)


@instruction(intp())
def stack_memory(b):
    """The address of the collection: i32 keys [ROOM], i32 ids [ROOM], both with 16 more."""
    with b.goto_entry_block():
        return b.ptrtoint(b.alloca(ir.ArrayType(I8, 8 * (ROOM + 16))), I64)


@instruction(intp(mask))
def lane_bits(b, where):
    """Bit i is lane i."""
    return b.zext(b.bitcast(where, I16), I64)


@instruction(intp(intp))
def lowest_bit(b, n):
    """The number of the lowest bit that is set."""
    return b.cttz(n, ir.Constant(ir.IntType(1), 1))


@inline
def in_order(v):
    """The bits of floats to integers that compare as the floats do (NaN at both ends); its own inverse."""
    return v ^ ((v >> 31) & splat_i32(2**31 - 1))


@inline
def load_keys(logits, n):
    """The first n logits as integers in order, and LOWEST after them."""
    keys = in_order(bits(load_first(logits, n) + splat(F(0))))  # -0 + 0 is 0
    return choose(first_lanes(n), larger(keys, splat_i32(LOWEST + 1)), splat_i32(LOWEST))


@inline
def ones_where_greater(x, y):
    return choose(greater_i32(x, y), splat_i32(1), splat_i32(0))


# --- The collection: keys and ids of some logits, ids ascending


@inline
def count_above(keys, n, threshold):
    """How many of n keys exceed the threshold; the 16 after them must be LOWEST."""
    count = splat_i32(0)
    for at in range(0, n, 16):
        count = count + ones_where_greater(load_i32x16(keys + at * 4), splat_i32(threshold))
    return total_i32(count)


@inline
def cut(keys, ids, n, keep):
    """Keeps the `keep` largest of n > keep, of equal ones those with lower ids; returns the smallest of them."""
    store_vector(keys + n * 4, splat_i32(LOWEST))
    below, smallest = LOWEST, 2**31 - 1
    while smallest - below > 1:
        middle = (below + smallest) >> 1
        if count_above(keys, n, middle) < keep:
            smallest = middle
        else:
            below = middle
    kept, equals = 0, keep - count_above(keys, n, smallest)
    for i in range(n):
        key = load_i32(keys + i * 4)
        if key > smallest or (key == smallest and equals > 0):
            equals -= key == smallest
            store_i32(keys + kept * 4, key)
            store_i32(ids + kept * 4, load_i32(ids + i * 4))
            kept += 1
    return smallest


@inline
def collect(logits, vocab, keep, keys, ids):
    """The `keep` largest logits' keys and ids, ids ascending."""
    n, threshold = 0, LOWEST
    for at in range(0, vocab, 16):
        key = load_keys(logits + at * 4, vocab - at)
        found = lane_bits(greater_i32(key, splat_i32(threshold)))
        while found:
            i = lowest_bit(found)
            store_i32(keys + n * 4, lane_i32(key, i))
            store_i32(ids + n * 4, at + i)
            n += 1
            found &= found - 1
        if n > ROOM - 16:
            threshold = cut(keys, ids, n, keep)
            n = keep
    if n > keep:
        cut(keys, ids, n, keep)


@inline
def put_in_order(keys, ids, n, out_ids, out_values):
    """Each to its place: after all larger ones, and after equal ones with lower ids."""
    store_vector(keys + n * 4, splat_i32(LOWEST))
    for i in range(n):
        key = load_i32(keys + i * 4)
        count = splat_i32(0)
        for at in range(0, n, 16):
            before = ones_where_greater(splat_i32(i - at), lane_numbers())
            count = count + ones_where_greater(load_i32x16(keys + at * 4), splat_i32(key) - before)
        place = total_i32(count)
        store_i32(out_ids + place * 4, load_i32(ids + i * 4))
        store_f32(out_values + place * 4, lane(floats(in_order(splat_i32(key))), 0))


# --- The softmax


@inline
def maximum(logits, vocab):
    keys = splat_i32(LOWEST)
    for at in range(0, vocab, 16):
        keys = larger(keys, load_keys(logits + at * 4, vocab - at))
    return lane(floats(in_order(splat_i32(largest_i32(keys)))), 0)


@inline
def statistics(logits, vocab, stats):
    """Log-sum-exp and entropy: e^(logit - maximum) in float32, sums in float64."""
    most = maximum(logits, vocab)
    weights, weighted = splat_f64(0.0), splat_f64(0.0)
    for at in range(0, vocab, 16):
        n = vocab - at
        # far below the maximum e^x is 0, and -infinity must not meet it
        x = larger(splat(FAR), load_first(logits + at * 4, n) - splat(most))
        x = choose(first_lanes(n), x, splat(FAR))
        weight = widen(exp(x))
        weights, weighted = weights + weight, weighted + weight * widen(x)
    total = total_f64(weights)
    store_f64(stats, most + log(total))
    store_f64(stats + 8, log(total) - total_f64(weighted) / total)


def rows():
    def kernel(args, chunk, thread):
        row, vocab, keep = chunk // 2, field(args, TOP.vocab), field(args, TOP.keep)
        logits = field(args, TOP.logits) + row * field(args, TOP.logits_stride)
        if chunk % 2 == 0:
            statistics(logits, vocab, field(args, TOP.stats) + row * 16)
        else:
            keys = stack_memory()
            ids = keys + (ROOM + 16) * 4
            collect(logits, vocab, keep, keys, ids)
            put_in_order(keys, ids, keep, field(args, TOP.ids) + row * keep * 4, field(args, TOP.values) + row * keep * 4)

    return kernel


KERNELS = {"rows": rows}
