"""Activations to int8: one scale for each token and group of 32 columns, in the order the matrix product reads them.

A chunk is a block of M tokens. One token, or a row that lies elsewhere (experts.py), is done group by group. Of several, a group is
done at once: the magnitudes of M tokens are reduced together, and the codes of M rows are exchanged in registers, because the
product reads four columns of each token in turn. Codes, scales and sums depend on a token's own 32 numbers only, and largest
and sum are exact, so no order of arithmetic is at stake.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.dot import FLOATS, HEIGHTS, dot4, each, row, zeros
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    I32,
    I64,
    constant,
    i8x16,
    i8x64,
    i32x16,
    inline,
    instruction,
    intp,
    lanes,
    store,
    void,
)
from llmcli.backends.cpu.kernels.vectors import (
    bits,
    field,
    float_from_bits,
    larger,
    largest_i32,
    load_f32x16,
    load_first,
    rint,
    rounded,
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


# --- One row of a block


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


# --- A whole block


def both(b, x, y, order):
    """Lanes of two vectors, those of y counted on from x's."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def folded(b, vectors, operation):
    """M vectors of 16 -> one of M lanes, each the operation over a vector's lanes. M: a power of two."""
    width = 16  # lanes of one row in each vector
    while width > 1:
        half, firsts = width // 2, range(0, vectors[0].type.count, width)
        low = [at + i for at in firsts for i in range(half)]
        high = [at + half + i for at in firsts for i in range(half)]
        if len(vectors) > 1:
            low, high = ([*part, *(vectors[0].type.count + i for i in part)] for part in (low, high))
            vectors = [operation(both(b, x, y, low), both(b, x, y, high)) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        else:
            vectors = [operation(lanes(b, vectors[0], low), lanes(b, vectors[0], high))]
        width = half
    return vectors[0]


def interleaved(b, x, y, width):
    """Vectors [8][width] and [8][width] of 32 bits, 16 a vector -> [8][2 * width]."""
    results = []
    for at in range(0, 16 * width, 16):
        order = []
        for i in range(at, at + 16):
            four, token = i // (2 * width), i % (2 * width)
            order.append((four * width + token % width) % 16 + (x[0].type.count if token >= width else 0))
        source = at // (2 * width) * width // 16
        results.append(both(b, x[source], y[source], order))
    return results


@instruction(*(FLOATS[M](intp, intp, intp, intp, FLOATS[M]) for M in HEIGHTS))
def load_rows(b, address, stride, count, n, like):
    """The first n lanes of the first `count` rows, zeros elsewhere; memory beyond is not touched."""

    def row_of(m):
        inside = b.select(b.icmp_signed("<", ir.Constant(count.type, m), count), n, ir.Constant(n.type, 0))
        return load_first(b, row(b, address, stride, m), inside)

    return each(b, like, row_of)


def largest_of_rows(b, tiles):
    """The largest magnitude of each row, f32 [M]: bits of magnitudes compare as integers as the floats do, with infinity and then
    NaN on top."""
    no_sign, rows = constant(i32x16.llvm, 0x7FFFFFFF), []
    for m in range(tiles[0].type.count):
        x, y = (b.and_(b.bitcast(b.extract_value(tile, m), i32x16.llvm), no_sign) for tile in tiles)
        rows.append(larger(b, x, y))
    found = folded(b, rows, lambda x, y: larger(b, x, y))
    return b.bitcast(found, ir.VectorType(F32, len(rows)))


def codes_of_rows(b, tiles, inverses):
    """Codes of 32 columns of M rows, times their inverse scales: vectors of fours, [8][M] in all."""
    rows = []
    for m in range(tiles[0].type.count):
        inverse = lanes(b, inverses, [m] * 16)
        parts = (b.trunc(rounded(b, b.fmul(b.extract_value(tile, m), inverse)), i8x16.llvm) for tile in tiles)
        rows.append([b.bitcast(both(b, *parts, range(32)), ir.VectorType(I32, 8))])
    width = 1
    while len(rows) > 1:
        rows = [interleaved(b, x, y, width) for x, y in zip(rows[::2], rows[1::2], strict=True)]
        width *= 2
    return rows[0]


def sums_of_rows(b, codes, count):
    """The sums of each row's codes, i32 [M]."""
    ones, total = constant(i8x64.llvm, 1), ir.Constant(i32x16.llvm, None)
    for vector in codes:
        whole = vector if vector.type.count == 16 else both(b, vector, ir.Constant(vector.type, None), range(16))
        total = dot4(b, total, ones, whole)
    while total.type.count > count:
        half = total.type.count // 2
        total = b.add(lanes(b, total, range(half)), lanes(b, total, range(half, 2 * half)))
    return total


@instruction(*(void(intp, intp, intp, FLOATS[M], FLOATS[M]) for M in HEIGHTS))
def store_group(b, codes, scales, sums, first, second):
    """M rows of 32 numbers, columns 0-15 and 16-31 -> codes s8 [8][M][4], scales f32 [M], -128 times each sum i32 [M].

    A row is zero when its largest magnitude is, or is so small that 127 / largest overflows. A row with infinity or NaN gets
    that as its scale, whatever its codes: so it reaches the product, where rounding alone would hide it."""
    largest = largest_of_rows(b, (first, second))
    most, infinity = constant(largest.type, 127.0), constant(largest.type, float("inf"))
    nothing = ir.Constant(largest.type, None)
    inverses = b.fdiv(most, largest)
    overflow = b.fcmp_ordered("==", inverses, infinity)
    store(b, scales, b.select(overflow, nothing, b.fdiv(largest, most)))
    vectors = codes_of_rows(b, (first, second), b.select(overflow, nothing, inverses))
    for number, vector in enumerate(vectors):
        store(b, b.add(codes, ir.Constant(codes.type, 64 * number)), vector)
    total = sums_of_rows(b, vectors, first.type.count)
    store(b, sums, b.mul(total, constant(total.type, -128)))


def blocks(M):
    zero = zeros(M)

    def kernel(args, chunk, thread):
        header, columns = field(args, QUANTIZE.header), field(args, QUANTIZE.columns)
        n = field(header, HEADER.outputs) if field(args, QUANTIZE.outputs) else field(header, HEADER.tokens)
        groups, stride = (columns + 31) // 32, field(args, QUANTIZE.x_stride)
        x, at = field(args, QUANTIZE.x) + chunk * M * stride, chunk * groups * M
        codes = field(args, QUANTIZE.codes) + at * 32
        scales, sums = field(args, QUANTIZE.scales) + at * 4, field(args, QUANTIZE.sums) + at * 4
        count, nothing = n - chunk * M, zero()
        for group in range(groups):
            left = columns - group * 32
            first, second = load_rows(x, stride, count, left, nothing), load_rows(x + 64, stride, count, left - 16, nothing)
            store_group(codes, scales, sums, first, second)
            x, codes, scales, sums = x + 128, codes + 32 * M, scales + 4 * M, sums + 4 * M

    return kernel


def single():
    """The same for blocks of one row."""

    def kernel(args, chunk, thread):
        columns, x = field(args, QUANTIZE.columns), field(args, QUANTIZE.x) + chunk * field(args, QUANTIZE.x_stride)
        codes, scales, sums = field(args, QUANTIZE.codes), field(args, QUANTIZE.scales), field(args, QUANTIZE.sums)
        quantize_row(x, columns, (columns + 31) // 32, chunk, 0, 1, codes, scales, sums)

    return kernel


def rows(M):
    return single() if M == 1 else blocks(M)


KERNELS = {"rows": rows}
