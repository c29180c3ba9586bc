"""Activations to int8: one scale for each token and group of 32 columns, in the order the matrix product reads them."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.instructions import I32, I64, i8x16, i32x16, inline, instruction, intp, store, void
from llmcli.backends.cpu.kernels.vectors import (
    bits,
    field,
    float_from_bits,
    larger,
    largest_i32,
    load_f32x16,
    load_first,
    rint,
    splat,
    splat_i32,
    store_f32,
    store_i32,
    to_i32,
    total_i32,
)
from llmcli.backends.cpu.records import HEADER, QUANTIZE

MOST = np.float32(127)
INFINITY = np.float32(np.inf)


@instruction(void(intp, intp, i32x16))
def store_fours(b, address, stride, v):
    """The low bytes of lanes 4i .. 4i + 3 to address + i * stride."""
    fours = b.bitcast(b.trunc(v, i8x16.llvm), ir.VectorType(I32, 4))
    for i in range(4):
        store(b, b.add(address, b.mul(stride, ir.Constant(I64, i))), b.extract_element(fours, ir.Constant(I32, i)))


@inline
def magnitude(v):
    """The bits of |v|: they compare as integers as the floats do, with infinity and then NaN on top."""
    return bits(v) & splat_i32(0x7FFFFFFF)


@inline
def quantize_group(a, b, codes, stride, scale, total):
    """32 floats a, b -> eight fours of codes, their scale, and -128 times their sum.

    A group is zero when its largest magnitude is, or is so small that 127 / largest overflows. A group with infinity
    or NaN gets that as its scale, and codes 0: so it reaches the product, where rounding alone would hide it."""
    largest = float_from_bits(largest_i32(larger(magnitude(a), magnitude(b))))
    inverse = MOST / largest
    first = second = splat_i32(0)
    if np.float32(0) < inverse < INFINITY:
        first, second = to_i32(rint(a * splat(inverse))), to_i32(rint(b * splat(inverse)))
    store_fours(codes, stride, first)
    store_fours(codes + 4 * stride, stride, second)
    store_f32(scale, np.float32(0) if inverse == INFINITY else largest / MOST)
    store_i32(total, -128 * total_i32(first + second))


@inline
def quantize_row(x, columns, groups, block, m, M, codes, scales, sums):
    """`columns` floats at x, and zeros up to whole groups, to row m of a block of codes, scales and sums (records.QUANTIZE)."""
    for group in range(groups):
        at = block * groups + group
        left = columns - group * 32
        if left >= 32:
            a, b = load_f32x16(x), load_f32x16(x + 64)
        else:
            a, b = load_first(x, left), load_first(x + 64, left - 16)
        one = (at * M + m) * 4
        quantize_group(a, b, codes + at * 32 * M + m * 4, 4 * M, scales + one, sums + one)
        x += 128


def rows(M):
    def kernel(args, chunk, thread):
        header, columns = field(args, QUANTIZE.header), field(args, QUANTIZE.columns)
        n = field(header, HEADER.outputs) if field(args, QUANTIZE.outputs) else field(header, HEADER.tokens)
        codes, scales, sums = field(args, QUANTIZE.codes), field(args, QUANTIZE.scales), field(args, QUANTIZE.sums)
        for m in range(M):
            row = chunk * M + m
            x = field(args, QUANTIZE.x) + row * field(args, QUANTIZE.x_stride)
            quantize_row(x, columns if row < n else 0, (columns + 31) // 32, chunk, m, M, codes, scales, sums)

    return kernel


KERNELS = {"rows": rows}
