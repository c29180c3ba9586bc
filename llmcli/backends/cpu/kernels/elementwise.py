"""Operations on numbers one by one: out[t] = f(a[t], b[t], value). One chunk is one row; out may be a or b.

To add one: a function of three vectors here and its name in KERNELS; `value` is the operation's parameter, and b is
read only by the functions of two operands. The fused ones are an activation and the multiplication that follows it.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import exp, normal_distribution, sigmoid, tanh
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    field,
    fma,
    larger,
    load_f32,
    load_f32x16,
    load_first,
    smaller,
    splat,
    store_first,
    store_vector,
)
from llmcli.backends.cpu.records import ELEMENTWISE

F = np.float32
GELU_SLOPE, GELU_CUBE = F(2 * (2 / np.pi) ** 0.5), F(0.044715)


@inline
def silu(a, b, value):
    return a / (splat(F(1)) + exp(-a))


@inline
def gelu(a, b, value):
    return a * normal_distribution(a)


@inline
def gelu_tanh(a, b, value):
    """a * (1 + tanh(u)) / 2, which is a * sigmoid(2 u)."""
    return a / (splat(F(1)) + exp(-(splat(GELU_SLOPE) * fma(splat(GELU_CUBE) * a, a * a, a))))


@inline
def quick_gelu(a, b, value):
    return a / (splat(F(1)) + exp(splat(F(-1.702)) * a))


@inline
def logistic(a, b, value):
    return sigmoid(a)


@inline
def relu(a, b, value):
    return larger(splat(F(0)), a)


@inline
def relu2(a, b, value):
    positive = larger(splat(F(0)), a)
    return positive * positive


@inline
def scale(a, b, value):
    return a * value


@inline
def softcap(a, b, value):
    return value * tanh(a / value)


@inline
def clip(a, b, value):
    return smaller(value, larger(-value, a))


@inline
def add(a, b, value):
    return a + b


@inline
def multiply(a, b, value):
    return a * b


ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
    "sigmoid": logistic,
    "quick_gelu": quick_gelu,
}
"""ops.ACTIVATIONS."""


def then_multiply(activation):
    """activation(a) * b: a gated block's inner product."""

    @inline
    def fused(a, b, value):
        return activation(a, b, value) * b

    return fused


def rows(function, operands):
    """The factory of a kernel that applies `function` along rows."""

    def factory():
        def kernel(args, chunk, thread):
            a = field(args, ELEMENTWISE.a) + chunk * field(args, ELEMENTWISE.a_stride)
            b = field(args, ELEMENTWISE.b) + chunk * field(args, ELEMENTWISE.b_stride) if operands == 2 else a
            out = field(args, ELEMENTWISE.out) + chunk * field(args, ELEMENTWISE.out_stride)
            value = splat(F(as_f64(field(args, ELEMENTWISE.value))))
            columns = field(args, ELEMENTWISE.columns)
            for at in range(0, columns & -16, 16):
                store_vector(out + at * 4, function(load_f32x16(a + at * 4), load_f32x16(b + at * 4), value))
            rest, at = columns & 15, (columns & -16) * 4
            if rest:
                store_first(out + at, function(load_first(a + at, rest), load_first(b + at, rest), value), rest)

        return kernel

    return factory


def scale_rows():
    def kernel(args, chunk, thread):
        a = field(args, ELEMENTWISE.a) + chunk * field(args, ELEMENTWISE.a_stride)
        out = field(args, ELEMENTWISE.out) + chunk * field(args, ELEMENTWISE.out_stride)
        factor = splat(load_f32(field(args, ELEMENTWISE.b) + chunk * field(args, ELEMENTWISE.b_stride)))
        columns = field(args, ELEMENTWISE.columns)
        for at in range(0, columns, 16):
            store_first(out + at * 4, load_first(a + at * 4, columns - at) * factor, columns - at)

    return kernel


KERNELS = {
    "add": rows(add, 2),
    "multiply": rows(multiply, 2),
    "scale": rows(scale, 1),
    "softcap": rows(softcap, 1),
    "clip": rows(clip, 1),
    "scale_rows": scale_rows,
    **{name: rows(function, 1) for name, function in ACTIVATIONS.items()},
    "silu_multiply": rows(then_multiply(silu), 2),
    "gelu_multiply": rows(then_multiply(gelu), 2),
    "gelu_tanh_multiply": rows(then_multiply(gelu_tanh), 2),
}
