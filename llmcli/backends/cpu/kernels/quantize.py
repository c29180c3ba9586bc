"""Activations to int8: one scale for each token and group of 32 columns, in the order the matrix product reads them.

A chunk is a block of M tokens. One token, or a row that lies elsewhere (experts.py), is done group by group. Of several, a group is
done at once: the magnitudes of M tokens are reduced together, and the codes of M rows are exchanged in registers, because the
product reads four columns of each token in turn; that is what the CPU's instructions for narrowing numbers do on their way. With 8
tokens 16 numbers take some 8 cycles; 4 bytes each are read and 1.25 written. Codes, scales and sums depend on a token's own 32
numbers only, and largest and sum are exact, so no order of arithmetic is at stake.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.dot import FLOATS, HEIGHTS, dot4, each, in_parts, row, zeros
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    I32,
    I64,
    call,
    constant,
    f32x16,
    i8x16,
    i8x64,
    i32x16,
    inline,
    instruction,
    intp,
    lanes,
    load,
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
HALVES = (0, 4), (8, 12)
"""Where the fours of four rows begin in each half of a vector."""


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


@instruction(*(FLOATS[M](intp, intp, intp, intp, FLOATS[M]) for M in HEIGHTS))
def load_rows(b, address, stride, count, n, like):
    """The first n lanes of the first `count` rows, zeros elsewhere; memory beyond is not touched."""

    def row_of(m):
        inside = b.select(b.icmp_signed("<", ir.Constant(count.type, m), count), n, ir.Constant(n.type, 0))
        return load_first(b, row(b, address, stride, m), inside)

    return each(b, like, row_of)


@instruction(*(FLOATS[M](intp, intp, FLOATS[M]) for M in HEIGHTS))
def load_whole_rows(b, address, stride, like):
    """16 floats of each row."""
    return each(b, like, lambda m: load(b, row(b, address, stride, m), f32x16.llvm))


def largest_of_rows(b, tiles):
    """The largest magnitude of each row, f32 [M]: bits of magnitudes compare as integers as the floats do, with infinity and then
    NaN on top."""
    no_sign, rows = constant(i32x16.llvm, 0x7FFFFFFF), []
    for m in range(tiles[0].type.count):
        x, y = (b.and_(b.bitcast(b.extract_value(tile, m), i32x16.llvm), no_sign) for tile in tiles)
        rows.append(larger(b, x, y))
    found = folded(b, rows, lambda x, y: larger(b, x, y))
    return b.bitcast(found, ir.VectorType(F32, len(rows)))


def narrowed(b, x, y):
    """Numbers of half the bits, each 128 bits of x followed by the same 128 bits of y. They must fit."""
    bits, count = x.type.element.width, x.type.count
    type_ = ir.VectorType(ir.IntType(bits // 2), 2 * count)
    if target.is_x86():
        name, known = {32: "packssdw", 16: "packsswb"}[bits], target.features()
        if "avx512bw" in known:
            return call(b, f"llvm.x86.avx512.{name}.512", type_, x, y)
        at_once = 256 if "avx2" in known else 128
        intrinsic = f"llvm.x86.avx2.{name}" if at_once == 256 else f"llvm.x86.sse2.{name}.128"
        return in_parts(b, intrinsic, ir.VectorType(type_.element, 2 * at_once // bits), x, y)
    x, y = (b.trunc(v, ir.VectorType(type_.element, count)) for v in (x, y))
    each = 128 // bits
    return both(b, x, y, [v + at + i for at in range(0, count, each) for v in (0, count) for i in range(each)])


def codes_of_rows(b, tiles, inverses):
    """Codes of 32 columns of M rows, times their inverse scales: vectors of fours, [8][M] in all. 128 bits of a vector of
    numbers become one four, so those of up to 4 rows end side by side."""
    rows = []
    for m in range(tiles[0].type.count):
        inverse = lanes(b, inverses, [m] * 16)
        rows.append([rounded(b, b.fmul(b.extract_value(tile, m), inverse)) for tile in tiles])

    def fours(*four):
        first, second = narrowed(b, *four[:2]), narrowed(b, *four[2:])
        return b.bitcast(narrowed(b, first, second), i32x16.llvm)

    if len(rows) == 2:
        [(x, x_last), (y, y_last)] = rows
        return [lanes(b, fours(x, y, x_last, y_last), [at + i for at in (0, 2) for four in range(0, 16, 4) for i in (four, four + 1)])]
    vectors = []
    for part in zip(*rows, strict=True):
        found = [fours(*part[m : m + 4]) for m in range(0, len(part), 4)]
        if len(found) == 2:
            found = [both(b, *found, [v + at + i for at in half for v in (0, 16) for i in range(4)]) for half in HALVES]
        vectors += found
    return vectors


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


@functools.cache
def group_of_block(M):
    """quantize(x, stride, count, left, at, codes, scales, sums): 32 columns of `count` rows of x, of which `left` columns are there, to
    group `at`, counted through all blocks of M rows; rows and columns that are not there are zero."""
    zero = zeros(M)

    @inline
    def one(x, stride, count, left, at, codes, scales, sums):
        if left >= 32:
            a, b = load_f32x16(x), load_f32x16(x + 64)
        else:
            a, b = load_first(x, left), load_first(x + 64, left - 16)
        quantize_group(a, b, codes + at * 32, 4, scales + at * 4, sums + at * 4)

    @inline
    def some(x, stride, count, left, at, codes, scales, sums):
        nothing, at = zero(), at * M
        if count >= M and left >= 32:
            first, second = load_whole_rows(x, stride, nothing), load_whole_rows(x + 64, stride, nothing)
        else:
            first, second = load_rows(x, stride, count, left, nothing), load_rows(x + 64, stride, count, left - 16, nothing)
        store_group(codes + at * 32, scales + at * 4, sums + at * 4, first, second)

    return one if M == 1 else some


@inline
def rows_left(args, chunk, M):
    """How many rows there are from block `chunk` on."""
    header = field(args, QUANTIZE.header)
    n = field(header, HEADER.outputs) if field(args, QUANTIZE.outputs) else field(header, HEADER.tokens)
    return n - chunk * M


def rows(M):
    quantize = group_of_block(M)

    def kernel(args, chunk, thread):
        columns, stride = field(args, QUANTIZE.columns), field(args, QUANTIZE.x_stride)
        x, groups, count = field(args, QUANTIZE.x) + chunk * M * stride, (columns + 31) // 32, rows_left(args, chunk, M)
        codes, scales, sums = field(args, QUANTIZE.codes), field(args, QUANTIZE.scales), field(args, QUANTIZE.sums)
        for group in range(groups):
            quantize(x + group * 128, stride, count, columns - group * 32, chunk * groups + group, codes, scales, sums)

    return kernel


KERNELS = {"rows": rows}
