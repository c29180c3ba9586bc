"""Writing keys and values into the KV cache (its layout: kv.py). One chunk is one token."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels import cache_codes
from llmcli.backends.cpu.kernels.faults import report
from llmcli.backends.cpu.kernels.half import f32_to_f16
from llmcli.backends.cpu.kernels.instructions import I32, I64, f32x16, instruction, intp, store, void
from llmcli.backends.cpu.kernels.vectors import (
    absolute,
    any_lane,
    field,
    first_lanes,
    greater,
    load_first,
    load_i32,
    splat,
    store_f16,
    store_vector,
)
from llmcli.backends.cpu.records import CACHE_WRITE, HEADER
from llmcli.backends.cpu.tiles import BLOCK

F = np.float32


def scatter(convert):
    """An instruction that stores the first n lanes of convert(b, v) `stride` bytes apart."""

    @instruction(void(intp, intp, f32x16, intp))
    def scatter_first(b, address, stride, v, n):
        converted = convert(b, v)
        for i in range(16):
            with b.if_then(b.icmp_signed(">", n, ir.Constant(I64, i)), likely=True):
                store(b, b.add(address, b.mul(stride, ir.Constant(I64, i))), b.extract_element(converted, ir.Constant(I32, i)))

    return scatter_first


STORES = {
    "f16": (2, store_f16, scatter(f32_to_f16), np.nextafter(F(65504), F(np.inf))),
    "f32": (4, store_vector, scatter(lambda b, v: v), F(np.inf)),
}
"""For each cache type: bytes of a number, how a vector is stored, how its lanes are, and what magnitudes must stay below."""


def write(dtype):
    item, store_all, scatter_first, limit = STORES[dtype]

    def kernel(args, chunk, thread):
        header = field(args, CACHE_WRITE.header)
        position = load_i32(field(header, HEADER.positions) + chunk * 4)
        table = field(header, HEADER.tables) + load_i32(field(header, HEADER.owners) + chunk * 4) * field(header, HEADER.table_stride)
        block = load_i32(table + position // BLOCK * 4)
        size = field(args, CACHE_WRITE.head_size)
        inside = position % BLOCK
        keys = field(args, CACHE_WRITE.cache) + block * field(args, CACHE_WRITE.block_bytes)
        values = keys + field(args, CACHE_WRITE.key_bytes) + inside * ((size + 15) & -16) * item
        keys += (inside // 16 * size * 16 + inside % 16) * item
        key = field(args, CACHE_WRITE.key) + chunk * field(args, CACHE_WRITE.key_stride)
        value = field(args, CACHE_WRITE.value) + chunk * field(args, CACHE_WRITE.value_stride)
        good = first_lanes(16)
        for _ in range(field(args, CACHE_WRITE.kv_heads)):
            for at in range(0, size, 16):
                n = size - at
                k, v = load_first(key + at * 4, n), load_first(value + at * 4, n)
                good = good & greater(splat(limit), absolute(k)) & greater(splat(limit), absolute(v))
                scatter_first(keys + at * 16 * item, 16 * item, k, n)
                store_all(values + at * item, v)
            key, value = key + size * 4, value + size * 4
            keys, values = keys + field(args, CACHE_WRITE.head_bytes), values + field(args, CACHE_WRITE.head_bytes)
        if any_lane(good ^ first_lanes(16)):
            report(header, field(args, CACHE_WRITE.op), chunk)

    return kernel


def write_any(dtype):
    return cache_codes.write(dtype) if dtype in cache_codes.LANES else write(dtype)


KERNELS = {"write": write_any}
