"""One head's key and value into a KV cache of floats (its layout: kv.py)."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from llmcli.backends.cpu.kernels.half import f32_to_f16
from llmcli.backends.cpu.kernels.instructions import I32, I64, f32x16, inline, instruction, intp, store, void
from llmcli.backends.cpu.kernels.vectors import absolute, any_lane, first_lanes, greater, load_first, splat, store_f16, store_vector

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


def head(dtype):
    """write(keys, values, end, inside, key, value, size): `size` floats at key and value to position `inside` of the block of this
    head whose parts begin at keys and values and end at `end`. Says whether the type can hold them."""
    item, store_all, scatter_first, limit = STORES[dtype]

    @inline
    def write(keys, values, end, inside, key, value, size):
        keys += (inside // 16 * size * 16 + inside % 16) * item
        values += inside * ((size + 15) & -16) * item
        good = first_lanes(16)
        for at in range(0, size, 16):
            n = size - at
            k, v = load_first(key + at * 4, n), load_first(value + at * 4, n)
            good = good & greater(splat(limit), absolute(k)) & greater(splat(limit), absolute(v))
            scatter_first(keys + at * 16 * item, 16 * item, k, n)
            store_all(values + at * item, v)
        return not any_lane(good ^ first_lanes(16))

    return write
