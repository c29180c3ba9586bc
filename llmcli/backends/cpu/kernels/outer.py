"""A tile of vectors x scalars in registers: attention's inner step, for scores (16 keys a vector, a scalar a query) as for
values (16 columns a vector, a weight a query)."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.half import f16_to_f32
from llmcli.backends.cpu.kernels.instructions import F32, I64, Vector, broadcast, f32x16, i16x16, instruction, intp, load, store, void
from llmcli.backends.cpu.kernels.vectors import fma

LOADS = {
    "f16": lambda b, address: f16_to_f32(b, load(b, address, i16x16.llvm)),
    "f32": lambda b, address: load(b, address, f32x16.llvm),
}
BYTES = {"f16": 2, "f32": 4}


def outer(dtype, vectors, vector_stride, scalars, scalar_stride):
    """The instructions of a tile of vectors x scalars accumulators [v][s]:

    zero() -> tile
    add(tile, vector address, scalar address) -> tile      [v][s] = fma(vector v, scalar s, [v][s])
    store(address, vector step, scalar step, tile)

    Vectors are of dtype and vector_stride bytes apart, scalars are f32 and scalar_stride bytes apart."""
    tile = Vector("f32", 16, vectors * scalars)

    @instruction(tile())
    def zero(b):
        return ir.Constant(tile.llvm, None)

    @instruction(tile(tile, intp, intp))
    def add(b, acc, vector, scalar):
        def a_vector(v):
            return LOADS[dtype](b, b.add(vector, ir.Constant(I64, v * vector_stride)))

        def a_scalar(s):
            return broadcast(b, load(b, scalar, F32, s * scalar_stride))

        def step(acc, v, s, x, y):
            at = v * scalars + s
            return b.insert_value(acc, fma(b, x, y, b.extract_value(acc, at)), at)

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

    @instruction(void(intp, intp, intp, tile))
    def store_tile(b, address, vector_step, scalar_step, acc):
        for v in range(vectors):
            for s in range(scalars):
                offset = b.add(b.mul(vector_step, ir.Constant(I64, v)), b.mul(scalar_step, ir.Constant(I64, s)))
                store(b, b.add(address, offset), b.extract_value(acc, v * scalars + s))

    return zero, add, store_tile
