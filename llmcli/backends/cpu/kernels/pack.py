"""Weights to int8 as formats/int8.py packs them, and to int4 with the scale search of formats/search.py, bit for bit: the same
numbers, in the same order.

A chunk is a tile of 16 rows. A lane is a row, so one vector holds a column of 16 groups, and a sum over a group is a sum of 32
vectors. int8 takes some 15 instructions for 16 weights, a third of them to turn rows into lanes. What search.py looks up for every
half of a code's unit is looked up here in bins of 16 halves, with one border between two codes at most in each
(`backends/cpu/pack.py` makes the tables): a candidate costs some 15 instructions for 16 weights.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.instructions import I32, I64, call, f32x16, i32x16, inline, instruction, intp, load, store, void
from llmcli.backends.cpu.kernels.vectors import (
    absolute,
    choose,
    field,
    floats,
    greater,
    greater_i32,
    larger,
    load_f16,
    load_f32,
    load_f32x16,
    load_first,
    rounded,
    smaller,
    splat,
    splat_i32,
    store_f16,
    store_vector,
    to_i32,
)
from llmcli.backends.cpu.records import PACK

F = np.float32
INFINITY = F(np.inf)
MOST = F(127)
BORDERS, LOWER, UPPER, NUMBERS, CANDIDATES, LOWEST, LAST = 0, 128, 256, 384, 512, 576, 580
"""Where each table begins (records.PACK)."""
LOW = [lane for i in range(8) for lane in (i, 16 + i)]
HIGH = [8 + lane for lane in LOW]


@instruction(void(intp, intp, intp, intp, intp))
def store_transposed(b, to, x, stride, count, n):
    """16 rows of n floats, `stride` bytes apart, as 16 vectors that each hold a column. Rows from `count` on, and columns from n
    on, are zero, and memory there is not touched."""
    rows = []
    for m in range(16):
        inside = b.select(b.icmp_signed("<", ir.Constant(I64, m), count), n, ir.Constant(I64, 0))
        rows.append(load_first(b, b.add(x, b.mul(stride, ir.Constant(I64, m))), inside))
    for _ in range(4):  # each time rows that are 8 apart are interleaved
        rows = [
            b.shuffle_vector(u, v, ir.Constant(i32x16.llvm, order))
            for u, v in zip(rows[:8], rows[8:], strict=True)
            for order in (LOW, HIGH)
        ]
    for column, vector in enumerate(rows):
        store(b, b.add(to, ir.Constant(I64, 64 * column)), vector)


@instruction(i32x16(intp, i32x16))
def look_up(b, table, index):
    """table[index] of 32 numbers at an address."""
    if "avx512f" in target.features():
        low, high = load(b, table, i32x16.llvm), load(b, table, i32x16.llvm, 64)
        return call(b, "llvm.x86.avx512.vpermi2var.d.512", i32x16.llvm, low, index, high)
    result = ir.Constant(i32x16.llvm, None)
    for lane in range(16):
        i = ir.Constant(I32, lane)
        at = b.mul(b.sext(b.extract_element(index, i), I64), ir.Constant(I64, 4))
        result = b.insert_element(result, load(b, b.add(table, at), I32), i)
    return result


@instruction(intp())
def stack_memory(b):
    """The address of 32 vectors."""
    with b.goto_entry_block():
        memory = b.alloca(ir.ArrayType(f32x16.llvm, 32))
        memory.align = 64
        return b.ptrtoint(memory, I64)


@inline
def place_of(x, twice_inverse, tables):
    """Twice the value in units of the scale, counted from the lowest code on, rounded down and kept among the codes."""
    place = x * twice_inverse - splat(load_f32(tables + LOWEST))
    return to_i32(smaller(larger(place, splat(F(0))), splat(load_f32(tables + LAST))))


@inline
def is_upper(place, tables):
    """Where the upper one of the place's bin is the nearest code."""
    return greater_i32(place, look_up(tables + BORDERS, place >> 4))


@inline
def ratio(a, b):
    """a / b, and 0 where twice that is not finite."""
    quotient = a / b
    return choose(greater(splat(INFINITY), absolute(quotient + quotient)), quotient, splat(F(0)))


@inline
def attempt(x, inverse, tables, gain, scale):
    """The better of the best (gain, scale) so far and the scale that fits the codes for 1 / inverse best."""
    xq = qq = splat(F(0))
    twice = inverse + inverse
    for column in range(32):
        value = load_f32x16(x + column * 64)
        place = place_of(value, twice, tables)
        upper, lower = look_up(tables + UPPER, place >> 4), look_up(tables + LOWER, place >> 4)
        code = floats(choose(is_upper(place, tables), upper, lower))
        xq, qq = xq + value * code, qq + code * code
    found = xq / larger(qq, splat(F(1)))
    better = greater(found * xq, gain)
    return choose(better, found * xq, gain), choose(better, found, scale)


@inline
def number_of(x, column, twice, tables):
    """The numbers of the nearest codes of a column."""
    place = place_of(load_f32x16(x + column * 64), twice, tables)
    return look_up(tables + NUMBERS, place >> 4) + choose(is_upper(place, tables), splat_i32(1), splat_i32(0))


@inline
def load_group(x, source, stride, count, n):
    """32 columns of 16 rows to 32 vectors at x; rows from `count` on and columns from n on are zero."""
    store_transposed(x, source, stride, count, n)
    store_transposed(x + 1024, source + 64, stride, count, n - 16)


def int8():
    def kernel(args, chunk, thread):
        columns, stride = field(args, PACK.columns), field(args, PACK.x_stride)
        groups, count = (columns + 31) // 32, field(args, PACK.rows) - chunk * 16
        source = field(args, PACK.x) + chunk * 16 * stride
        codes, scales = field(args, PACK.codes) + chunk * groups * 512, field(args, PACK.scales) + chunk * groups * 32
        x, most = stack_memory(), splat(MOST)
        for group in range(groups):
            load_group(x, source + group * 128, stride, count, columns - group * 32)
            magnitude = splat(F(0))
            for column in range(32):
                magnitude = larger(absolute(load_f32x16(x + column * 64)), magnitude)
            store_f16(scales, magnitude / most)
            scale = load_f16(scales)
            inverse = choose(greater(scale, splat(F(0))), splat(F(1)) / scale, splat(F(0)))
            for j in range(8):
                fours = splat_i32(0)
                for i in range(4):
                    code = rounded(smaller(larger(load_f32x16(x + (4 * j + i) * 64) * inverse, -most), most))
                    fours = fours | code + splat_i32(128) << 8 * i
                store_vector(codes + j * 64, fours)
            codes, scales = codes + 512, scales + 32

    return kernel


def int4():
    def kernel(args, chunk, thread):
        columns, stride, tables = field(args, PACK.columns), field(args, PACK.x_stride), field(args, PACK.tables)
        groups, count = (columns + 31) // 32, field(args, PACK.rows) - chunk * 16
        source = field(args, PACK.x) + chunk * 16 * stride
        codes, scales = field(args, PACK.codes) + chunk * groups * 256, field(args, PACK.scales) + chunk * groups * 32
        x = stack_memory()
        for group in range(groups):
            load_group(x, source + group * 128, stride, count, columns - group * 32)
            low = high = load_f32x16(x)
            for column in range(1, 32):
                low, high = smaller(load_f32x16(x + column * 64), low), larger(load_f32x16(x + column * 64), high)
            extreme = choose(greater(-low, high), low, high)
            gain, scale = splat(F(-1)), splat(F(0))
            for candidate in range(CANDIDATES, CANDIDATES + 64, 4):
                gain, scale = attempt(x, ratio(splat(load_f32(tables + candidate)), extreme), tables, gain, scale)
            gain, scale = attempt(x, ratio(splat(F(1)), scale), tables, gain, scale)
            store_f16(scales, scale)
            inverse = ratio(splat(F(1)), load_f16(scales))
            twice = inverse + inverse
            for j in range(4):
                fours = splat_i32(0)
                for i in range(4):
                    both = number_of(x, 4 * j + i, twice, tables) | number_of(x, 16 + 4 * j + i, twice, tables) << 4
                    fours = fours | both << 8 * i
                store_vector(codes + j * 64, fours)
            codes, scales = codes + 256, scales + 32

    return kernel


KERNELS = {"int4": int4, "int8": int8}
