"""Mixtures of experts: every token's chosen experts, each expert's weights read once for all tokens that chose it.

Tokens are grouped by expert first (`group`); their inputs are laid out in that order (`place`), an expert's matrices
multiply its group (`products`, see linear.py), with an activation in between (`activate`), and a token's results are
added up (`combine`). A row's arithmetic is that of a product with one row, and a token's experts are added in ascending
id, so its numbers do not depend on the other tokens. records.py has the layouts.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.elementwise import ACTIVATIONS
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.linear import last_tile, products
from llmcli.backends.cpu.kernels.quantize import quantize_row
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    field,
    fma,
    larger,
    load_f32,
    load_first,
    load_i32,
    load_i64,
    splat,
    store_first,
    store_i32,
    store_i64,
)
from llmcli.backends.cpu.records import (
    EXPERTS_ACTIVATE,
    EXPERTS_COMBINE,
    EXPERTS_GROUP,
    EXPERTS_LINEAR,
    EXPERTS_PLACE,
    HEADER,
    LINEAR,
    SLOT,
)

F = np.float32


def group():
    """Slots and places, by counting. The one chunk does all: there are only T * chosen choices."""

    def kernel(args, chunk, thread):
        tokens, chosen = field(field(args, EXPERTS_GROUP.header), HEADER.tokens), field(args, EXPERTS_GROUP.chosen)
        counts, places = field(args, EXPERTS_GROUP.counts), field(args, EXPERTS_GROUP.places)
        M = field(args, EXPERTS_GROUP.height)
        ids, stride = field(args, EXPERTS_GROUP.ids), field(args, EXPERTS_GROUP.ids_stride)
        for expert in range(field(args, EXPERTS_GROUP.count)):
            store_i32(counts + expert * 4, 0)
        for token in range(tokens):
            for i in range(chosen):
                count = counts + load_i32(ids + token * stride + i * 4) * 4
                store_i32(count, load_i32(count) + 1)
        used, block = 0, 0
        for expert in range(field(args, EXPERTS_GROUP.count)):
            blocks = (load_i32(counts + expert * 4) + M - 1) // M
            if blocks:
                slot = field(args, EXPERTS_GROUP.slots) + used * (4 * SLOT)
                store_i32(slot, expert)
                store_i32(slot + 4, block)
                store_i32(slot + 8, blocks)
                used += 1
            store_i32(counts + expert * 4, block * M)  # from here on: the expert's next row
            block += blocks
        store_i64(field(args, EXPERTS_GROUP.used), used)
        for token in range(tokens):
            for i in range(chosen):
                row = counts + load_i32(ids + token * stride + i * 4) * 4
                store_i32(places + (token * chosen + i) * 4, load_i32(row))
                store_i32(row, load_i32(row) + 1)

    return kernel


def place():
    def kernel(args, chunk, thread):
        M = field(args, EXPERTS_PLACE.height)
        x = field(args, EXPERTS_PLACE.x) + chunk // field(args, EXPERTS_PLACE.chosen) * field(args, EXPERTS_PLACE.x_stride)
        row, columns = load_i32(field(args, EXPERTS_PLACE.places) + chunk * 4), field(args, EXPERTS_PLACE.columns)
        if M:
            codes, scales, sums = field(args, EXPERTS_PLACE.codes), field(args, EXPERTS_PLACE.scales), field(args, EXPERTS_PLACE.sums)
            quantize_row(x, columns, (columns + 31) // 32, row // M, row % M, M, codes, scales, sums)
        else:
            out = field(args, EXPERTS_PLACE.out) + row * field(args, EXPERTS_PLACE.out_stride)
            for at in range(0, columns, 16):
                store_first(out + at * 4, load_first(x + at * 4, columns - at), columns - at)

    return kernel


@inline
def of_expert(args, chunk, height):
    """What a chunk multiplies (linear.whole): a piece of one expert's matrix and its group; nothing behind the last slot."""
    slot, piece = chunk // field(args, EXPERTS_LINEAR.slot_chunks), chunk % field(args, EXPERTS_LINEAR.slot_chunks)
    if slot >= load_i64(field(args, EXPERTS_LINEAR.used)):
        return 0, 0, 0, 0, 0, 0
    at = field(args, EXPERTS_LINEAR.slots) + slot * (4 * SLOT)
    expert, first, blocks = load_i32(at), load_i32(at + 4), load_i32(at + 8)
    bias = field(args, LINEAR.bias)
    if bias:
        bias += expert * field(args, EXPERTS_LINEAR.bias_bytes)
    matrix = expert * field(args, EXPERTS_LINEAR.matrix_bytes)
    return piece * field(args, LINEAR.chunk_tiles), last_tile(args, piece), first, blocks, matrix, bias


def activate(kind, gated, limited):
    """act(gate) * (up + shift), or act(up). limited: gates stay below the limit, and up between -limit and limit."""
    activation = ACTIVATIONS[kind]

    def kernel(args, chunk, thread):
        row, size = load_i32(field(args, EXPERTS_ACTIVATE.places) + chunk * 4), field(args, EXPERTS_ACTIVATE.size)
        inner = field(args, EXPERTS_ACTIVATE.inner) + row * field(args, EXPERTS_ACTIVATE.inner_stride)
        limit, shift = splat(F(as_f64(field(args, EXPERTS_ACTIVATE.limit)))), splat(F(as_f64(field(args, EXPERTS_ACTIVATE.shift))))
        for at in range(0, size, 16):
            n = size - at
            first = load_first(inner + at * 4, n)
            if limited:
                first = -larger(-limit, -first)
            y = activation(first, first, first)
            if gated:
                up = load_first(inner + (size + at) * 4, n)
                if limited:
                    up = -larger(-limit, -larger(-limit, up))
                y = y * (up + shift)
            store_first(inner + at * 4, y, n)
        M = field(args, EXPERTS_ACTIVATE.height)
        if M:
            codes, scales = field(args, EXPERTS_ACTIVATE.codes), field(args, EXPERTS_ACTIVATE.scales)
            quantize_row(inner, size, (size + 31) // 32, row // M, row % M, M, codes, scales, field(args, EXPERTS_ACTIVATE.sums))

    return kernel


def combine():
    def kernel(args, chunk, thread):
        chosen, columns = field(args, EXPERTS_COMBINE.chosen), field(args, EXPERTS_COMBINE.columns)
        places = field(args, EXPERTS_COMBINE.places) + chunk * chosen * 4
        weights = field(args, EXPERTS_COMBINE.weights) + chunk * field(args, EXPERTS_COMBINE.weights_stride)
        out = field(args, EXPERTS_COMBINE.out) + chunk * field(args, EXPERTS_COMBINE.out_stride)
        for at in range(0, columns, 16):
            store_first(out + at * 4, splat(F(0)), columns - at)
        last = -1
        for _ in range(chosen):
            next_ = -1
            for i in range(chosen):
                row = load_i32(places + i * 4)
                if row > last and (next_ < 0 or row < load_i32(places + next_ * 4)):
                    next_ = i
            last = load_i32(places + next_ * 4)
            weight = splat(load_f32(weights + next_ * 4))
            said = field(args, EXPERTS_COMBINE.said) + last * field(args, EXPERTS_COMBINE.said_stride)
            for at in range(0, columns, 16):
                n = columns - at
                store_first(out + at * 4, fma(weight, load_first(said + at * 4, n), load_first(out + at * 4, n)), n)

    return kernel


KERNELS = {**products(of_expert), "group": group, "place": place, "activate": activate, "combine": combine}
