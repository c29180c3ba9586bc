"""A tile of vectors x scalars in registers, as outer.py's, of integers: lanes and scalars are pairs of s16, whose two products
are added to an i32. Attention's inner step where the cache holds codes."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.dot import I16x32, dot2
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    I8,
    I32,
    I64,
    Vector,
    broadcast,
    f32x16,
    i32x16,
    instruction,
    intp,
    load,
    store,
    void,
)

I8x32 = ir.VectorType(I8, 32)
LOADS = {
    "int16": lambda b, address: load(b, address, i32x16.llvm),
    "int8": lambda b, address: b.bitcast(b.sext(load(b, address, I8x32), I16x32), i32x16.llvm),
}
BYTES = {"int16": 2, "int8": 1}


def outer(dtype, vectors, vector_stride, scalars, scalar_stride):
    """The instructions of a tile of vectors x scalars accumulators [v][s]:

    zero() -> tile
    add(tile, vector address, scalar address) -> tile      [v][s] += the products of vector v's pairs with the pair s
    store(address, vector step, scalar step, vector factors, scalar factors, scalar factors' step, tile)
        stores f32 [v][s] * the 16 factors of v (where there are any) * the factor of s (where there are any)

    Vectors are of dtype and vector_stride bytes apart, scalars are two s16 and scalar_stride bytes apart."""
    tile = Vector("i32", 16, vectors * scalars)

    @instruction(tile())
    def zero(b):
        return ir.Constant(tile.llvm, None)

    @instruction(tile(tile, intp, intp))
    def add(b, acc, vector, scalar):
        def a_vector(v):
            return LOADS[dtype](b, b.add(vector, ir.Constant(I64, v * vector_stride)))

        def a_scalar(s):
            return broadcast(b, load(b, scalar, I32, s * scalar_stride))

        def step(acc, v, s, x, y):
            at = v * scalars + s
            return b.insert_value(acc, dot2(b, b.extract_value(acc, at), x, y), at)

        # the shorter side is kept in registers while the longer one passes
        if vectors < scalars:
            kept = [a_vector(v) for v in range(vectors)]
            for s in range(scalars):
                y = a_scalar(s)
                for v in range(vectors):
                    acc = step(acc, v, s, kept[v], y)
        else:
            kept = [a_scalar(s) for s in range(scalars)]
            for v in range(vectors):
                x = a_vector(v)
                for s in range(scalars):
                    acc = step(acc, v, s, x, kept[s])
        return acc

    def each(b, address, vector_step, scalar_step, acc, factor):
        for v in range(vectors):
            for s in range(scalars):
                offset = b.add(b.mul(vector_step, ir.Constant(I64, v)), b.mul(scalar_step, ir.Constant(I64, s)))
                value = b.sitofp(b.extract_value(acc, v * scalars + s), f32x16.llvm)
                store(b, b.add(address, offset), b.fmul(value, factor(v, s)))

    @instruction(void(intp, intp, intp, intp, tile))
    def store_by_lane(b, address, vector_step, scalar_step, factors, acc):
        loaded = [load(b, factors, f32x16.llvm, 64 * v) for v in range(vectors)]
        each(b, address, vector_step, scalar_step, acc, lambda v, s: loaded[v])

    @instruction(void(intp, intp, intp, intp, intp, tile))
    def store_by_scalar(b, address, vector_step, scalar_step, factors, factor_step, acc):
        at = [b.add(factors, b.mul(factor_step, ir.Constant(I64, s))) for s in range(scalars)]
        loaded = [broadcast(b, load(b, one, F32)) for one in at]
        each(b, address, vector_step, scalar_step, acc, lambda v, s: loaded[s])

    return zero, add, store_by_lane, store_by_scalar
