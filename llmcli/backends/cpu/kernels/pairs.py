"""A tile of vectors x scalars in registers, as outer.py's, of integers: lanes and scalars are pairs of s16, whose two products
are added to an i32. Attention's inner step where the cache holds codes."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.dot import I16x32, dot2
from llmcli.backends.cpu.kernels.instructions import F32, I8, I64, broadcast, f32x16, i32x16, instruction, intp, load, store, void
from llmcli.backends.cpu.kernels.outer import places, sums

I8x32 = ir.VectorType(I8, 32)
LOADS = {
    "int16": lambda b, address: load(b, address, i32x16.llvm),
    "int8": lambda b, address: b.bitcast(b.sext(load(b, address, I8x32), I16x32), i32x16.llvm),
}
BYTES = {"int16": 2, "int8": 1}


def outer(dtype, vectors, vector_stride, scalars, scalar_stride):
    """The instructions of a tile: zero and add (outer.sums; vectors of dtype, scalars of two s16), and two that store it as f32:

    store_by_lane(address, vector step, scalar step, factors, tile)                [v][s] times the 16 factors of v
    store_by_scalar(address, vector step, scalar step, factors, their step, tile)  [v][s] times the factor of s"""

    def multiply_add(b, x, y, acc):
        return dot2(b, acc, x, y)

    tile, zero, add = sums("i32", vectors, vector_stride, scalars, scalar_stride, LOADS[dtype], multiply_add)

    def store_times(b, place, value, factor):
        store(b, place, b.fmul(b.sitofp(value, f32x16.llvm), factor))

    @instruction(void(intp, intp, intp, intp, tile))
    def store_by_lane(b, address, vector_step, scalar_step, factors, acc):
        loaded = [load(b, factors, f32x16.llvm, 64 * v) for v in range(vectors)]
        for v, _, place, at in places(b, address, vectors, vector_step, scalars, scalar_step):
            store_times(b, place, b.extract_value(acc, at), loaded[v])

    @instruction(void(intp, intp, intp, intp, intp, tile))
    def store_by_scalar(b, address, vector_step, scalar_step, factors, factor_step, acc):
        loaded = [broadcast(b, load(b, b.add(factors, b.mul(factor_step, ir.Constant(I64, s))), F32)) for s in range(scalars)]
        for _, s, place, at in places(b, address, vectors, vector_step, scalars, scalar_step):
            store_times(b, place, b.extract_value(acc, at), loaded[s])

    return zero, add, store_by_lane, store_by_scalar
