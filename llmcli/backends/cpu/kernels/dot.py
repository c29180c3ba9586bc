"""The product of small integers: the only place that differs between CPUs. `lookup` turns nibbles into code values,
`dot4` adds four u8 x s8 products to each i32, the tile instructions do so for a few tokens x 16 output rows at once, and
`dot2` adds two s16 x s16 products, for attention.

Every way gives the same integers, so results do not depend on the CPU's instructions here. vpdpbusd is used in its
wrapping form, and vpmaddwd and smull on bytes widened to 16 bits: none can saturate. Arm's sdot takes signed bytes only, which
weights are when 128 is taken off; tiles then leave out what makes up for weights that are 128 too large.
"""

from __future__ import annotations

import functools

from llvmlite import ir

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Vector,
    broadcast,
    call,
    constant,
    f32x16,
    i8x16,
    i8x64,
    i16x16,
    i32x16,
    instruction,
    intp,
    lanes,
    load,
    void,
)
from llmcli.backends.cpu.kernels.vectors import fma, load_first, store_first

I16x32, I32x4 = ir.VectorType(I16, 32), ir.VectorType(I32, 4)


def in_parts(b, intrinsic, part_type, *values):
    """Calls an LLVM intrinsic made for narrower registers on 512-bit values, part by part."""
    count = 512 // (part_type.count * part_type.element.width)
    results = []
    for part in range(count):
        pieces = [lanes(b, v, range(part * v.type.count // count, (part + 1) * v.type.count // count)) for v in values]
        results.append(call(b, intrinsic, part_type, *pieces))
    while len(results) > 1:
        both = range(2 * results[0].type.count)
        order = ir.Constant(ir.VectorType(I32, len(both)), list(both))
        results = [b.shuffle_vector(x, y, order) for x, y in zip(results[::2], results[1::2], strict=True)]
    return results[0]


# --- Nibbles to codes


@instruction(i8x64(i8x64))
def low_nibbles(b, v):
    return b.and_(v, constant(i8x64.llvm, 15))


@instruction(i8x64(i8x64))
def high_nibbles(b, v):
    return b.lshr(v, constant(i8x64.llvm, 4))


@instruction(i8x64(intp))
def load_table(b, address):
    """The 16 bytes at an address, four times: a table for `lookup`."""
    return lanes(b, load(b, address, i8x16.llvm), list(range(16)) * 4)


@instruction(i8x64(i8x64, i8x64))
def lookup(b, table, nibbles):
    """table[nibble] for 64 nibbles (0..15)."""
    known = target.features()
    if "avx512bw" in known:
        return call(b, "llvm.x86.avx512.pshuf.b.512", i8x64.llvm, table, nibbles)
    if "avx2" in known:
        return in_parts(b, "llvm.x86.avx2.pshuf.b", ir.VectorType(I8, 32), table, nibbles)
    if "ssse3" in known:
        return in_parts(b, "llvm.x86.ssse3.pshuf.b.128", i8x16.llvm, table, nibbles)
    if target.architecture() == "aarch64":
        return in_parts(b, "llvm.aarch64.neon.tbl1.v16i8", i8x16.llvm, table, nibbles)
    codes = ir.Constant(i8x64.llvm, None)
    for nibble in range(16):
        value = lanes(b, table, [nibble] * 64)
        codes = b.select(b.icmp_unsigned("==", nibbles, constant(i8x64.llvm, nibble)), value, codes)
    return codes


# --- Dot products of four


def dot4(b, acc, unsigned, signed):
    """acc[i] + the sum of unsigned[4i + n] * signed[4i + n] over n < 4. acc, signed: <16 x i32>; unsigned: <64 x i8>."""
    kind = target.dot4_kind()
    weights = b.bitcast(unsigned, i32x16.llvm)
    if kind == "avx512vnni":
        return call(b, "llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, acc, weights, signed)
    if kind == "avxvnni":
        return in_parts(b, "llvm.x86.avx512.vpdpbusd.256", ir.VectorType(I32, 8), acc, weights, signed)
    if kind == "usdot":
        return in_parts(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", I32x4, acc, unsigned, b.bitcast(signed, i8x64.llvm))
    if kind == "sdot":
        too_little = _sdot(b, ir.Constant(i32x16.llvm, None), constant(i8x64.llvm, -128), signed)
        return b.sub(_sdot(b, acc, _less_128(b, unsigned), signed), too_little)
    # bytes 0 and 2 of each four, then bytes 1 and 3, as pairs of 16-bit numbers: no shuffle is needed
    w, x, eight = b.bitcast(weights, I16x32), b.bitcast(signed, I16x32), constant(I16x32, 8)
    even = dot2(b, ir.Constant(i32x16.llvm, None), b.and_(w, constant(I16x32, 255)), b.ashr(b.shl(x, eight), eight))
    return b.add(acc, dot2(b, even, b.lshr(w, eight), b.ashr(x, eight)))


def _sdot(b, acc, x, y):
    """acc[i] + the sum of x[4i + n] * y[4i + n] over n < 4, all signed. x: <64 x i8>; acc, y: <16 x i32>."""
    return in_parts(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32x4, acc, x, b.bitcast(y, i8x64.llvm))


def _less_128(b, unsigned):
    return b.xor(unsigned, constant(i8x64.llvm, 0x80))


def dot2(b, acc, x, y):
    """acc[i] + the sum of x[2i + n] * y[2i + n] over n < 2. acc: <16 x i32>; x, y: as many bits, pairs of s16."""
    x, y = b.bitcast(x, i32x16.llvm), b.bitcast(y, i32x16.llvm)
    kind = target.dot4_kind()
    if kind == "avx512vnni":
        return call(b, "llvm.x86.avx512.vpdpwssd.512", i32x16.llvm, acc, x, y)
    if kind == "avxvnni":
        return in_parts(b, "llvm.x86.avx512.vpdpwssd.256", ir.VectorType(I32, 8), acc, x, y)
    if target.is_x86():
        return b.add(acc, _add_pairs(b, b.bitcast(x, I16x32), b.bitcast(y, I16x32)))
    sixteen = constant(i32x16.llvm, 16)
    if target.architecture() == "aarch64":
        for first, second in (x, y), (b.ashr(x, sixteen), b.ashr(y, sixteen)):
            halves = (b.trunc(v, i16x16.llvm) for v in (first, second))
            acc = b.add(acc, in_parts(b, "llvm.aarch64.neon.smull.v4i32", I32x4, *halves))
        return acc
    low = b.mul(b.ashr(b.shl(x, sixteen), sixteen), b.ashr(b.shl(y, sixteen), sixteen))
    return b.add(b.add(acc, low), b.mul(b.ashr(x, sixteen), b.ashr(y, sixteen)))


def _add_pairs(b, w, x):
    """w[2i] * x[2i] + w[2i + 1] * x[2i + 1] in i32."""
    if "avx512bw" in target.features():
        return call(b, "llvm.x86.avx512.pmaddw.d.512", i32x16.llvm, w, x)
    if "avx2" in target.features():
        return in_parts(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), w, x)
    return in_parts(b, "llvm.x86.sse2.pmadd.wd", ir.VectorType(I32, 4), w, x)


# --- Tiles: some tokens x 16 output rows, one register a token

HEIGHTS = (1, 2, 4, 8)
FLOATS = {rows: Vector("f32", 16, rows) for rows in HEIGHTS}
INTEGERS = {rows: Vector("i32", 16, rows) for rows in HEIGHTS}


def each(b, tile, vector):
    """A tile of vector(m) for each token m of a tile like `tile`. A loop at run time would put it in memory."""
    first = vector(0)
    result = ir.Constant(ir.ArrayType(first.type, tile.type.count), ir.Undefined)
    for m in range(tile.type.count):
        result = b.insert_value(result, first if m == 0 else vector(m), m)
    return result


def row(b, address, stride, m):
    """The address of a tile's row m."""
    return b.add(address, b.mul(stride, ir.Constant(I64, m)))


@functools.cache
def zeros(rows):
    """The instruction that makes a float tile of zeros."""

    @instruction(FLOATS[rows]())
    def zero_tile(b):
        return ir.Constant(FLOATS[rows].llvm, None)

    return zero_tile


@instruction(*(intp(INTEGERS[r]) for r in HEIGHTS))
def rows_of(b, tile):
    """The tile's height, a constant."""
    return ir.Constant(I64, tile.type.count)


@instruction(*(INTEGERS[r](FLOATS[r], intp) for r in HEIGHTS))
def load_sums(b, like, address):
    """What the products of a group begin with, a tile as high as `like`: the i32 at address [m] in row m, -128 times the sum of the
    activations' codes; zeros where `dot` takes 128 off the weights."""
    if target.dot4_kind() == "sdot":
        return each(b, like, lambda m: ir.Constant(i32x16.llvm, None))
    return each(b, like, lambda m: broadcast(b, load(b, address, I32, 4 * m)))


@instruction(*(INTEGERS[r](INTEGERS[r], i8x64, intp) for r in HEIGHTS))
def dot(b, acc, weights, codes):
    """acc[m] += weights (u8, fours of 16 rows) * the four s8 at codes [m][4]."""
    multiply = dot4
    if target.dot4_kind() == "sdot":
        multiply, weights = _sdot, _less_128(b, weights)
    return each(b, acc, lambda m: multiply(b, b.extract_value(acc, m), weights, broadcast(b, load(b, codes, I32, 4 * m))))


@instruction(*(FLOATS[r](FLOATS[r], INTEGERS[r], f32x16, intp) for r in HEIGHTS))
def scale_add(b, acc, products, weight_scales, scales):
    """acc[m] = fma(products[m], weight_scales * the f32 at scales [m], acc[m])."""

    def vector(m):
        scale = b.fmul(weight_scales, broadcast(b, load(b, scales, F32, 4 * m)))
        return fma(b, b.sitofp(b.extract_value(products, m), f32x16.llvm), scale, b.extract_value(acc, m))

    return each(b, acc, vector)


@instruction(*(FLOATS[r](FLOATS[r], f32x16, intp, intp) for r in HEIGHTS))
def offset_add(b, acc, weight_offsets, sums, scales):
    """acc[m] = fma(weight_offsets, the sum of a group's activations, acc[m]): the i32 at sums [m] is -128 times that of their codes,
    so the rest is exact but for one product with the f32 at scales [m]."""

    def vector(m):
        total = b.fmul(b.sitofp(load(b, sums, I32, 4 * m), F32), ir.Constant(F32, -1 / 128))
        activations = broadcast(b, b.fmul(total, load(b, scales, F32, 4 * m)))
        return fma(b, weight_offsets, activations, b.extract_value(acc, m))

    return each(b, acc, vector)


@instruction(*(FLOATS[r](FLOATS[r], f32x16, intp, intp) for r in HEIGHTS))
def multiply_add(b, acc, weights, x, stride):
    """acc[m] = fma(weights, the f32 at x + m * stride, acc[m])."""
    return each(b, acc, lambda m: fma(b, weights, broadcast(b, load(b, row(b, x, stride, m), F32)), b.extract_value(acc, m)))


@instruction(*(FLOATS[r](FLOATS[r], f32x16) for r in HEIGHTS))
def add_to_each(b, tile, v):
    return each(b, tile, lambda m: b.fadd(b.extract_value(tile, m), v))


@instruction(*(FLOATS[r](intp, intp, FLOATS[r], intp) for r in HEIGHTS))
def add_stored(b, address, stride, tile, n):
    """The tile plus the first n lanes of the rows in memory."""
    return each(b, tile, lambda m: b.fadd(load_first(b, row(b, address, stride, m), n), b.extract_value(tile, m)))


@instruction(*(void(intp, intp, FLOATS[r], intp) for r in HEIGHTS))
def store_rows(b, address, stride, tile, n):
    """Stores the first n lanes of each row; memory beyond is not touched."""
    for m in range(tile.type.count):
        store_first(b, row(b, address, stride, m), b.extract_value(tile, m), n)
