"""Vectors of 16 float64, for what float32 cannot carry: angles at far positions, sums over a vocabulary."""

from __future__ import annotations

import operator

from llvmlite import ir

from llmcli.backends.cpu.kernels.instructions import (
    I32,
    I64,
    Vector,
    broadcast,
    call,
    f32x16,
    f64,
    i32x16,
    instruction,
    intp,
    mask,
    pointer,
    register,
)
from llmcli.backends.cpu.kernels.vectors import first_lanes, halving

f64x16 = Vector("f64", 16)


@instruction(f64x16(intp, intp))
def load_first_f64(b, address, n):
    """The first n float64 (n > 16: all) and zeros after them; memory beyond is not touched."""
    where, zeros = first_lanes(b, n), ir.Constant(f64x16.llvm, None)
    return call(b, "llvm.masked.load.v16f64.p0", f64x16.llvm, pointer(b, address, f64x16.llvm), ir.Constant(I32, 1), where, zeros)


@instruction(f64x16(f64))
def splat_f64(b, x):
    return broadcast(b, x)


@instruction(f64x16(f32x16))
def widen(b, v):
    return b.fpext(v, f64x16.llvm)


@instruction(f32x16(f64x16))
def narrow(b, v):
    """Rounded to float32, half to even."""
    return b.fptrunc(v, f32x16.llvm)


@instruction(f64(f64x16))
def total_f64(b, v):
    """The sum of the lanes, by a fixed tree."""
    return halving(lambda b, x, y: b.fadd(x, y))(b, v)


@instruction(f64x16(mask, f64x16, f64x16))
def choose_f64(b, where, x, y):
    """x where true, else y."""
    return b.select(where, x, y)


@instruction(i32x16(f64x16))
def low_bits(b, v):
    """The low 32 bits of each float64."""
    return b.trunc(b.bitcast(v, ir.VectorType(I64, 16)), i32x16.llvm)


@instruction(intp(f64))
def bits_of_f64(b, x):
    return b.bitcast(x, I64)


for _operator, _name in {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul"}.items():
    register(_operator, f64x16(f64x16, f64x16), lambda b, x, y, name=_name: getattr(b, name)(x, y))
register(operator.neg, f64x16(f64x16), lambda b, v: b.fneg(v))
