"""A tile of vectors x scalars in registers: attention's inner step, for scores (16 keys a vector, a scalar a query) as for
values (16 columns a vector, a weight a query). Of floats here, of integers in pairs.py."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.half import f16_to_f32
from llmcli.backends.cpu.kernels.instructions import I64, Vector, broadcast, f32x16, i16x16, instruction, intp, load, store, void
from llmcli.backends.cpu.kernels.vectors import fma

LOADS = {
    "f16": lambda b, address: f16_to_f32(b, load(b, address, i16x16.llvm)),
    "f32": lambda b, address: load(b, address, f32x16.llvm),
}
BYTES = {"f16": 2, "f32": 4}


def sums(lane, vectors, vector_stride, scalars, scalar_stride, load_vector, multiply_add):
    """The type of a tile of vectors x scalars accumulators [v][s], whose lanes and scalars are `lane`, and its instructions

    zero() -> tile
    add(tile, vector address, scalar address) -> tile      [v][s] = multiply_add(b, vector v, scalar s, [v][s])

    Vectors are vector_stride bytes apart, scalars scalar_stride."""
    tile = Vector(lane, 16, vectors * scalars)

    @instruction(tile())
    def zero(b):
        return ir.Constant(tile.llvm, None)

    @instruction(tile(tile, intp, intp))
    def add(b, acc, vector, scalar):
        def a_vector(v):
            return load_vector(b, b.add(vector, ir.Constant(I64, v * vector_stride)))

        def a_scalar(s):
            return broadcast(b, load(b, scalar, tile.llvm.element.element, s * scalar_stride))

        def step(acc, v, s, x, y):
            at = v * scalars + s
            return b.insert_value(acc, multiply_add(b, x, y, b.extract_value(acc, at)), at)

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

    return tile, zero, add


def places(b, address, vectors, vector_step, scalars, scalar_step):
    """(v, s, where the tile's [v][s] is stored, its number) of all of them."""
    for v in range(vectors):
        for s in range(scalars):
            offset = b.add(b.mul(vector_step, ir.Constant(I64, v)), b.mul(scalar_step, ir.Constant(I64, s)))
            yield v, s, b.add(address, offset), v * scalars + s


def outer(dtype, vectors, vector_stride, scalars, scalar_stride):
    """`zero` and `add` of a tile of floats, by fma, and store(address, vector step, scalar step, tile). Vectors are of dtype, scalars
    f32."""
    tile, zero, add = sums("f32", vectors, vector_stride, scalars, scalar_stride, LOADS[dtype], fma)

    @instruction(void(intp, intp, intp, tile))
    def store_tile(b, address, vector_step, scalar_step, acc):
        for _, _, place, at in places(b, address, vectors, vector_step, scalars, scalar_step):
            store(b, place, b.extract_value(acc, at))

    return zero, add, store_tile
