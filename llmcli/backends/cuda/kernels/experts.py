"""Mixtures of experts: each chosen expert's matrices for its token, and their sum.

A choice is one token's one expert: T * chosen of them. For few tokens, and for floats, `up` and `down` are decode.py's or floats.py's
routed kernels, a block for each choice and 32 rows, which read the matrices of chosen experts only; experts that several tokens chose are
found in the L2 cache. For more tokens they are prompt.py's grouped kernel, a block for up to 64 choices of one expert (groups.py): its
weights are read once for all of them. Rows stay in the order of choices, so that nothing else differs. Between them `activate`, behind
them `combine`, which adds a token's experts in ascending id. A choice's arithmetic is that of a product with one token.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels import codes, decode, floats, groups, prompt, quantize
from llmcli.backends.cuda.kernels import linear as products
from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, fma, kernel, made, product
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.weights import FLOAT_BYTES

BLOCK = 256 if not SIMULATED else 32
F = np.float32


def grouped(format, tokens, count):
    """Whether a product of choices goes by groups, for up to so many tokens and `count` experts."""
    return format not in FLOAT_BYTES and not products.height(tokens) and count <= groups.MOST


def by_group(format, place, tokens, chosen, count, per_row, step, weights, x, listed, out, bias=None):
    """As `linear`, where `grouped`. listed: the step's groups, i32."""
    to, start, stride = out
    tail = to if bias is None else bias, -1 if bias is None else 0, to, start, stride, 0
    choices = tokens * chosen
    kernel, grid, block = prompt.launch(codes.kind(format), place, groups.blocks(choices, count), True)
    numbers = place.scales, place.offsets, *codes.table(format), place.rows, place.groups, decode.span(place.chunks)
    args = (step, 0, weights, place.size, *numbers, x, per_row, listed, groups.order_at(choices, count), *tail)
    return Launch(kernel, grid, block, args)


def linear(format, place, tokens, chosen, per_row, step, weights, x, ids, out, bias=None):
    """out[t * chosen + i] = matrix[ids[t, i]] @ x[(t * chosen + i) // per_row] + bias[ids[t, i]].

    per_row: `chosen` where x has a row for each token, 1 where it has one for each choice. ids: (i32 array, start, stride); out: an operand
    with a row for each choice; bias f32 [E, N] flat. The rest as of linear.linear."""
    to, start, stride = out
    tail = to if bias is None else bias, -1 if bias is None else 0, to, start, stride, 0
    grid = -(-place.rows // 32), tokens * chosen
    if format in FLOAT_BYTES:
        args = (step, 0, chosen, weights, place.size, place.rows, place.columns, *x, per_row, *ids, *tail)
        return Launch(floats.floats(format, 1, True), grid, 32 * decode.SEGMENTS, args)
    numbers = place.scales, place.offsets, *codes.table(format), place.rows, place.groups, decode.span(place.chunks)
    args = (step, 0, chosen, weights, place.size, *numbers, x, per_row, *ids, *tail)
    return Launch(decode.integers(codes.kind(format), 1, True), grid, 32 * decode.segments(place.chunks), args)


@made
def activation(function, gated, limited):
    """The kernel: inner[c] = act(inner[c]) * (inner[c + size] + shift), or act(inner[c]). function(a, b, value): a device function.
    limited: gates stay below the limit, the others between -limit and limit. Reads 8 bytes a column, writes 4."""

    @kernel
    def activate(step, chosen, inner, start, stride, size, limit, shift):
        choice = cuda.blockIdx.y
        column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        if choice < step[0] * chosen and column < size:
            at = start + choice * stride + column
            first, most = inner[at], F(limit)
            if limited:
                first = most if first > most else first
            value = function(first, first, F(0))
            if gated:
                second = inner[at + size]
                if limited:
                    second = most if second > most else second
                    second = -most if second < -most else second
                value = product(value, second + F(shift))
            inner[at] = value

    return activate


def activate(function, gated, tokens, chosen, step, inner, size, limit, shift):
    """One launch of `activation` on the operand `inner`, a row for each choice."""
    grid = -(-size // BLOCK), tokens * chosen
    return Launch(activation(function, gated, bool(limit)), grid, BLOCK, (step, chosen, *inner, size, limit, shift))


def quantize_rows(tokens, chosen, step, x, columns, codes):
    """One launch that quantizes the operand x, a row for each choice, to codes u8 (quantize.py)."""
    _, grid, block = quantize.launch(tokens * chosen, columns)
    return Launch(quantize.quantize_choices, grid, block, (step, chosen, *x, columns, codes))


@kernel
def combine_rows(step, chosen, said, said_start, said_stride, ids, ids_start, ids_stride, weights, weights_start, weights_stride,
                 out, out_start, out_stride, columns):  # fmt: skip
    """out[t] = sum of weights[t, i] * said[t * chosen + i], by ascending ids[t, i], one fma each from 0. Reads 4 * chosen bytes a
    column."""
    token = cuda.blockIdx.y
    column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if token >= step[0] or column >= columns:
        return
    total, last = F(0), np.int32(-1)
    for _ in range(chosen):
        best, found = np.int32(0x7FFFFFFF), 0
        for i in range(chosen):
            expert = ids[ids_start + token * ids_stride + i]
            if expert > last and expert < best:
                best, found = expert, i
        last = best
        row = said_start + (token * chosen + found) * said_stride
        total = fma(weights[weights_start + token * weights_stride + found], said[row + column], total)
    out[out_start + token * out_stride + column] = total


def combine(tokens, chosen, step, said, ids, weights, out, columns):
    """One launch of combine_rows; said, weights and out are operands."""
    grid = -(-columns // BLOCK), tokens
    return Launch(combine_rows, grid, BLOCK, (step, chosen, *said, *ids, *weights, *out, columns))
