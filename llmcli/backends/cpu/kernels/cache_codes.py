"""One head's key and value into a KV cache of codes (its layout: kv.py)."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.codes import CODES, factor, sizes
from llmcli.backends.cpu.kernels.instructions import (
    I1,
    I8,
    I16,
    I32,
    I64,
    call,
    constant,
    i32x16,
    inline,
    instruction,
    intp,
    pointer,
    store,
    void,
)
from llmcli.backends.cpu.kernels.vectors import load_first, rounded, splat, store_f32
from llmcli.backends.cpu.tiles import BLOCK

F = np.float32
INFINITY = F(np.inf)


def stores(lane_type):
    """Instructions that store 16 codes: (pairs, even, odd).

    pairs(address, stride, codes, n)        pairs of the first n, `stride` bytes apart
    even(address, codes), odd(...)          each in the first or second place of a pair; what lies in the other, which another
                                            thread may be writing, is not touched"""
    item = lane_type.width // 8
    pair = ir.IntType(16 * item)

    @instruction(void(intp, intp, i32x16, intp))
    def pairs(b, address, stride, codes, n):
        found = b.bitcast(b.trunc(codes, ir.VectorType(lane_type, 16)), ir.VectorType(pair, 8))
        for i in range(8):
            with b.if_then(b.icmp_signed(">", n, ir.Constant(I64, 2 * i)), likely=True):
                store(b, b.add(address, b.mul(stride, ir.Constant(I64, i))), b.extract_element(found, ir.Constant(I32, i)))

    def every_other(first):
        where = ir.Constant(ir.VectorType(I1, 32), [place % 2 == first for place in range(32)])

        @instruction(void(intp, i32x16))
        def store_codes(b, address, codes):
            wide = codes if item == 2 else b.trunc(codes, ir.VectorType(pair, 16))
            wide = b.shl(wide, constant(wide.type, first * 8 * item))
            places = b.bitcast(wide, ir.VectorType(lane_type, 32))
            name = f"llvm.masked.store.v32i{8 * item}.p0"
            call(b, name, ir.VoidType(), places, pointer(b, address, places.type), ir.Constant(I32, 1), where)

        return store_codes

    return pairs, every_other(0), every_other(1)


LANES = {"int16": (I16, CODES, True), "int8": (I8, F(127), False)}
"""For each type of codes: a code, the largest one, and whether that is the length of a key, or its largest number as a value's is."""


def head(dtype):
    """write(keys, values, end, inside, key, value, size): as cache_floats.head; the scales are the last 2 * BLOCK floats before `end`."""
    lane_type, largest_code, by_length = LANES[dtype]
    item = lane_type.width // 8
    store_pairs, store_even, store_odd = stores(lane_type)

    @inline
    def write(keys, values, end, inside, key, value, size):
        keys += (inside // 16 * ((size + 1) & -2) * 16 + inside % 16 * 2) * item
        values += inside // 2 * ((size + 15) & -16) * 2 * item
        scales = end - 2 * BLOCK * 4 + inside * 4
        key_length, key_size = sizes(key, size)
        value_length, value_size = sizes(value, size)
        if by_length:
            key_size = key_length
        key_factor, value_factor = factor(largest_code, key_size), factor(largest_code, value_size)
        for at in range(0, size, 16):
            n = size - at
            k, v = load_first(key + at * 4, n), load_first(value + at * 4, n)
            store_pairs(keys + at * 16 * item, 32 * item, rounded(k * splat(key_factor)), n)
            if inside % 2:
                store_odd(values + at * 2 * item, rounded(v * splat(value_factor)))
            else:
                store_even(values + at * 2 * item, rounded(v * splat(value_factor)))
        store_f32(scales, key_size * (F(1) / largest_code))
        store_f32(scales + BLOCK * 4, value_size * (F(1) / largest_code))
        return key_length < INFINITY and value_length < INFINITY

    return write
