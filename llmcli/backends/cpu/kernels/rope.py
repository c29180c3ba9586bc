"""Rotary positions, in place: pairs of columns are turned by position * frequency. One chunk is one token.

A pair's cosine and sine serve all heads. Angles are float32 products, as in the implementations that models are trained
with (ops.py); their reduction is float64, so that far positions turn exactly.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.doubles import load_first_f64, narrow, splat_f64, widen
from llmcli.backends.cpu.kernels.instructions import f32x16, i32x16, inline, instruction
from llmcli.backends.cpu.kernels.mathematics import cosine_sine
from llmcli.backends.cpu.kernels.vectors import as_f64, field, load_first, load_i32, splat, store_first
from llmcli.backends.cpu.records import HEADER, ROPE


def two_to_one(order):
    """An instruction that takes 16 lanes out of two vectors' 32."""

    @instruction(f32x16(f32x16, f32x16))
    def take(b, x, y):
        return b.shuffle_vector(x, y, ir.Constant(i32x16.llvm, list(order)))

    return take


evens, odds = two_to_one(range(0, 32, 2)), two_to_one(range(1, 32, 2))
low_pairs = two_to_one([i // 2 + 16 * (i % 2) for i in range(16)])
high_pairs = two_to_one([8 + i // 2 + 16 * (i % 2) for i in range(16)])


@inline
def turn_half(x, at, n, half, cosine, sine):
    """Pairs (i, i + half) for i = at .. at + n - 1."""
    low, high = x + at * 4, x + (half + at) * 4
    a, b = load_first(low, n), load_first(high, n)
    store_first(low, a * cosine - b * sine, n)
    store_first(high, b * cosine + a * sine, n)


@inline
def turn_interleaved(x, at, n, half, cosine, sine):
    """Pairs (2i, 2i + 1) for i = at .. at + n - 1."""
    low, high = x + at * 8, x + at * 8 + 64
    first, second = load_first(low, 2 * n), load_first(high, 2 * n - 16)
    a, b = evens(first, second), odds(first, second)
    a, b = a * cosine - b * sine, b * cosine + a * sine
    store_first(low, low_pairs(a, b), 2 * n)
    store_first(high, high_pairs(a, b), 2 * n - 16)


def token(turn):
    """rope(args, token) of a rotation; turn(x, at, n, half, cosine, sine) turns n pairs of one head."""

    @inline
    def rope(args, token):
        position = load_i32(field(field(args, ROPE.header), HEADER.positions) + token * 4)
        half = field(args, ROPE.size) >> 1
        factor = splat_f64(as_f64(field(args, ROPE.factor)))
        for at in range(0, half, 16):
            n = half - at
            angle = narrow(load_first_f64(field(args, ROPE.frequencies) + at * 8, n)) * splat(np.float32(position))
            cosine, sine = cosine_sine(widen(angle))
            cosine, sine = narrow(cosine * factor), narrow(sine * factor)
            x = field(args, ROPE.x) + token * field(args, ROPE.x_stride)
            for _ in range(field(args, ROPE.heads)):
                turn(x, at, n, half, cosine, sine)
                x += field(args, ROPE.head_size) * 4

    return rope


TOKENS = {"half": token(turn_half), "interleaved": token(turn_interleaved)}
"""rope(args, token), by which columns are a pair."""


def rows(pairs):
    def factory():
        rope = TOKENS[pairs]

        def kernel(args, chunk, thread):
            rope(args, chunk)

        return kernel

    return factory


KERNELS = {pairs: rows(pairs) for pairs in TOKENS}
