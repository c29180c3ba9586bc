"""float16 to float32 and back: an instruction where the CPU has one, else integer arithmetic. Without either, LLVM
would call a run-time library that is not there."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.instructions import F16, constant, f32x16, i16x16, i32x16


def f16_to_f32(b, v):
    """<16 x i16> of float16 bits -> <16 x float>."""
    if target.has_f16():
        return b.fpext(b.bitcast(v, ir.VectorType(F16, 16)), f32x16.llvm)
    i = i32x16.llvm
    wide = b.zext(v, i)
    sign = b.shl(b.and_(wide, constant(i, 0x8000)), constant(i, 16))
    magnitude = b.shl(b.and_(wide, constant(i, 0x7FFF)), constant(i, 13))
    # f32 exponents start 112 below f16's; the product is exact for subnormals too
    value = b.bitcast(b.fmul(b.bitcast(magnitude, f32x16.llvm), constant(f32x16.llvm, 2.0**112)), i)
    special = b.or_(magnitude, constant(i, 0x7F800000))
    value = b.select(b.icmp_signed("<", magnitude, constant(i, 0x7C00 << 13)), value, special)
    return b.bitcast(b.or_(value, sign), f32x16.llvm)


def f32_to_f16(b, v):
    """<16 x float> -> <16 x i16> of float16 bits, rounded half to even."""
    if target.has_f16():
        return b.bitcast(b.fptrunc(v, ir.VectorType(F16, 16)), i16x16.llvm)
    i = i32x16.llvm
    wide = b.bitcast(v, i)
    sign = b.and_(b.lshr(wide, constant(i, 16)), constant(i, 0x8000))
    magnitude = b.and_(wide, constant(i, 0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, constant(i, 13)), constant(i, 1))
    normal = b.lshr(b.add(b.add(magnitude, constant(i, (-112 << 23) + 0xFFF)), odd), constant(i, 13))
    # adding 1/2 shifts a value below 2^-14 to where the float's last bit is f16's, and rounds it
    half = 0x3F000000
    small = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, f32x16.llvm), constant(f32x16.llvm, 0.5)), i), constant(i, half))
    large = b.select(b.icmp_signed(">", magnitude, constant(i, 0x7F800000)), constant(i, 0x7E00), constant(i, 0x7C00))
    value = b.select(b.icmp_signed("<", magnitude, constant(i, 113 << 23)), small, normal)
    value = b.select(b.icmp_signed(">=", magnitude, constant(i, 0x47800000)), large, value)
    return b.trunc(b.or_(value, sign), i16x16.llvm)
