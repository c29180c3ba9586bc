"""Writing keys and values into a KV cache of codes (its layout: kv.py). One chunk is one token."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.codes import CODES, factor, largest_magnitude, length
from llmcli.backends.cpu.kernels.faults import report
from llmcli.backends.cpu.kernels.instructions import I8, I16, I32, I64, i32x16, instruction, intp, store, void
from llmcli.backends.cpu.kernels.vectors import field, load_first, load_i32, rounded, splat, store_f32
from llmcli.backends.cpu.records import CACHE_WRITE, HEADER
from llmcli.backends.cpu.tiles import BLOCK

F = np.float32
INFINITY = F(np.inf)


def scatter_codes(lane_type):
    """Instructions that store 16 codes `stride` bytes apart, and the pairs of the first n of them."""
    item = lane_type.width // 8

    @instruction(void(intp, intp, i32x16))
    def scatter_all(b, address, stride, codes):
        narrow = b.trunc(codes, ir.VectorType(lane_type, 16))
        for i in range(16):
            store(b, b.add(address, b.mul(stride, ir.Constant(I64, i))), b.extract_element(narrow, ir.Constant(I32, i)))

    @instruction(void(intp, intp, i32x16, intp))
    def scatter_pairs(b, address, stride, codes, n):
        narrow = b.trunc(codes, ir.VectorType(lane_type, 16))
        pairs = b.bitcast(narrow, ir.VectorType(ir.IntType(16 * item), 8))
        for i in range(8):
            with b.if_then(b.icmp_signed(">", n, ir.Constant(I64, 2 * i)), likely=True):
                store(b, b.add(address, b.mul(stride, ir.Constant(I64, i))), b.extract_element(pairs, ir.Constant(I32, i)))

    return scatter_all, scatter_pairs


LANES = {"int16": (I16, CODES, length), "int8": (I8, F(127), largest_magnitude)}
"""For each type of codes: a code, the largest one, and what of a key becomes as large: its length, or its largest number."""


def write(dtype):
    lane_type, largest_code, key_size_of = LANES[dtype]
    item = lane_type.width // 8
    scatter_all, scatter_pairs = scatter_codes(lane_type)

    def kernel(args, chunk, thread):
        header = field(args, CACHE_WRITE.header)
        position = load_i32(field(header, HEADER.positions) + chunk * 4)
        table = field(header, HEADER.tables) + load_i32(field(header, HEADER.owners) + chunk * 4) * field(header, HEADER.table_stride)
        block = load_i32(table + position // BLOCK * 4)
        size = field(args, CACHE_WRITE.head_size)
        inside = position % BLOCK
        keys = field(args, CACHE_WRITE.cache) + block * field(args, CACHE_WRITE.block_bytes)
        scales = keys + field(args, CACHE_WRITE.head_bytes) - 2 * BLOCK * 4 + inside * 4
        values = keys + field(args, CACHE_WRITE.key_bytes) + (inside // 2 * ((size + 15) & -16) * 2 + inside % 2) * item
        keys += (inside // 16 * ((size + 1) & -2) * 16 + inside % 16 * 2) * item
        key = field(args, CACHE_WRITE.key) + chunk * field(args, CACHE_WRITE.key_stride)
        value = field(args, CACHE_WRITE.value) + chunk * field(args, CACHE_WRITE.value_stride)
        for _ in range(field(args, CACHE_WRITE.kv_heads)):
            if not (length(key, size) < INFINITY and length(value, size) < INFINITY):
                report(header, field(args, CACHE_WRITE.op), chunk)
            key_size, value_size = key_size_of(key, size), largest_magnitude(value, size)
            key_factor, value_factor = factor(largest_code, key_size), factor(largest_code, value_size)
            for at in range(0, size, 16):
                n = size - at
                k, v = load_first(key + at * 4, n), load_first(value + at * 4, n)
                scatter_pairs(keys + at * 16 * item, 32 * item, rounded(k * splat(key_factor)), n)
                scatter_all(values + at * 2 * item, 2 * item, rounded(v * splat(value_factor)))
            store_f32(scales, key_size * (F(1) / largest_code))
            store_f32(scales + BLOCK * 4, value_size * (F(1) / largest_code))
            key, value = key + size * 4, value + size * 4
            keys, values = keys + field(args, CACHE_WRITE.head_bytes), values + field(args, CACHE_WRITE.head_bytes)
            scales += field(args, CACHE_WRITE.head_bytes)

    return kernel
