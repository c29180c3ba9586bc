"""out = x / size of x * weight, row by row. One chunk is one row with all its heads; out may be x.

Sums run over columns ascending in 16 lanes, which a fixed tree adds up: one order for every shape of step.
"""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cpu.kernels.faults import report
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    choose,
    field,
    first_lanes,
    fma,
    load_first,
    load_i32,
    splat,
    store_first,
    total,
)
from llmcli.backends.cpu.records import HEADER, NORM

F = np.float32
INFINITY = F(np.inf)


@inline
def no_mean(x, columns):
    return F(0)


@inline
def mean(x, columns):
    lanes = splat(F(0))
    for at in range(0, columns, 16):
        lanes = lanes + load_first(x + at * 4, columns - at)
    return total(lanes) / F(columns)


@inline
def squares(x, columns, centre):
    """The sum of (x - centre)^2."""
    lanes = splat(F(0))
    for at in range(0, columns, 16):
        d = choose(first_lanes(columns - at), load_first(x + at * 4, columns - at) - splat(centre), splat(F(0)))
        lanes = fma(d, d, lanes)
    return total(lanes)


def rows(centre_of):
    """The factory of a norm; centre_of(x, columns) is what is taken from a head's columns first."""

    def factory():
        def kernel(args, chunk, thread):
            columns = field(args, NORM.columns) // field(args, NORM.heads)
            x = field(args, NORM.x) + chunk * field(args, NORM.x_stride)
            out = field(args, NORM.out) + chunk * field(args, NORM.out_stride)
            weight, bias = field(args, NORM.weight), field(args, NORM.bias)
            finite = True
            for _ in range(field(args, NORM.heads)):
                centre = centre_of(x, columns)
                sum_of_squares = squares(x, columns, centre)
                finite &= sum_of_squares < INFINITY
                factor = F(1) / F(math.sqrt(sum_of_squares / F(columns) + F(as_f64(field(args, NORM.eps)))))
                for at in range(0, columns, 16):
                    n = columns - at
                    y = (load_first(x + at * 4, n) - splat(centre)) * splat(factor) * load_first(weight + at * 4, n)
                    if bias:
                        y = y + load_first(bias + at * 4, n)
                    store_first(out + at * 4, y, n)
                x, out = x + columns * 4, out + columns * 4
                weight += field(args, NORM.weight_step)
                if bias:
                    bias += field(args, NORM.weight_step)
            if not finite:
                header = field(args, NORM.header)
                token = load_i32(field(header, HEADER.output_rows) + chunk * 4) if field(args, NORM.outputs) else chunk
                report(header, field(args, NORM.op), token)

        return kernel

    return factory


KERNELS = {"rms": rows(no_mean), "layer": rows(mean)}
