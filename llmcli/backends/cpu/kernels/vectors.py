"""Hardware vectors as Numba types, and what kernels do with them: each function here emits one LLVM operation or a
few. A kernel written with them stays a readable Python function and compiles to the instructions one would pick in C.

Types: i8x64 i8x16 i16x16 i32x16 f32x16, and mask (16 truth values). Addresses, counts and scalar integers are intp.
`a + b`: operators work on two vectors of one type: + - * / on f32x16; + - * & | ^ on i32x16; & | ^ on i8x64 and mask; unary -;
<< and >> (arithmetic) of i32x16 by an intp. Nothing here raises, calls libm or a run-time library.
Atomics, pauses and calls of kernels are in threads.py; new instructions are made, and a kernel's
helper functions marked `@inline`, as in instructions.py.
"""

from __future__ import annotations

import operator

from llvmlite import ir

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.half import f16_to_f32, f32_to_f16
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    F64,
    I16,
    I32,
    I64,
    boolean,
    broadcast,
    call,
    constant,
    f32,
    f32x16,
    f64,
    i8x64,
    i16x16,
    i32x16,
    instruction,
    intp,
    lanes,
    load,
    mask,
    pointer,
    register,
    store,
    void,
)

# --- Scalars in memory


@instruction(intp(intp))
def load_i32(b, address):
    return b.sext(load(b, address, I32), I64)


@instruction(intp(intp))
def load_i64(b, address):
    return load(b, address, I64)


@instruction(f32(intp))
def load_f32(b, address):
    return load(b, address, F32)


@instruction(void(intp, intp))
def store_i32(b, address, value):
    store(b, address, b.trunc(value, I32))


@instruction(void(intp, intp))
def store_i64(b, address, value):
    store(b, address, value)


@instruction(void(intp, f32))
def store_f32(b, address, value):
    store(b, address, value)


@instruction(void(intp, f64))
def store_f64(b, address, value):
    store(b, address, value)


@instruction(intp(intp, intp))
def field(b, args, offset):
    """A field of an argument record: field(args, LINEAR.out)."""
    return load(b, b.add(args, offset), I64)


@instruction(f64(intp))
def as_f64(b, bits):
    """The float64 with these bits: how records carry floats."""
    return b.bitcast(bits, F64)


@instruction(f32(intp))
def float_from_bits(b, bits):
    """The float32 with these bits."""
    return b.bitcast(b.trunc(bits, I32), F32)


# --- Whole vectors in memory, at any address


@instruction(i8x64(intp))
def load_i8x64(b, address):
    return load(b, address, i8x64.llvm)


@instruction(i32x16(intp))
def load_i32x16(b, address):
    return load(b, address, i32x16.llvm)


@instruction(f32x16(intp))
def load_f32x16(b, address):
    return load(b, address, f32x16.llvm)


@instruction(void(intp, i8x64), void(intp, i32x16), void(intp, f32x16))
def store_vector(b, address, v):
    """Stores 64 bytes."""
    store(b, address, v)


@instruction(f32x16(intp))
def load_f16(b, address):
    """16 float16 as float32."""
    return f16_to_f32(b, load(b, address, i16x16.llvm))


@instruction(void(intp, f32x16))
def store_f16(b, address, v):
    """Stores float16, rounded half to even; beyond 65,504 infinity."""
    store(b, address, f32_to_f16(b, v))


@instruction(void(intp, i32x16))
def store_i16(b, address, v):
    """Stores the low 16 bits of each lane."""
    store(b, address, b.trunc(v, i16x16.llvm))


@instruction(f32x16(intp))
def load_bf16(b, address):
    """16 bfloat16 as float32."""
    return b.bitcast(b.shl(b.zext(load(b, address, i16x16.llvm), i32x16.llvm), constant(i32x16.llvm, 16)), f32x16.llvm)


@instruction(f32x16(intp, intp))
def load_first(b, address, n):
    """The first n floats (n < 0: none; n > 16: all) and zeros after them; memory beyond is not touched."""
    if target.has_masks():
        return _load_first(b, address, n)
    with b.if_else(_whole(b, n), likely=True) as (then, otherwise):
        with then:
            whole, after_whole = load(b, address, f32x16.llvm), b.block
        with otherwise:
            part, after_part = _load_first(b, address, n), b.block
    found = b.phi(f32x16.llvm)
    found.add_incoming(whole, after_whole)
    found.add_incoming(part, after_part)
    return found


def _load_first(b, address, n):
    where = first_lanes(b, n)
    zeros = ir.Constant(f32x16.llvm, None)
    return call(b, "llvm.masked.load.v16f32.p0", f32x16.llvm, pointer(b, address, f32x16.llvm), ir.Constant(I32, 1), where, zeros)


@instruction(void(intp, f32x16, intp))
def store_first(b, address, v, n):
    """Stores the first n floats; memory beyond is not touched."""
    if target.has_masks():
        return _store_first(b, address, v, n)
    with b.if_else(_whole(b, n), likely=True) as (then, otherwise):
        with then:
            store(b, address, v)
        with otherwise:
            _store_first(b, address, v, n)


def _whole(b, n):
    return b.icmp_signed(">=", n, ir.Constant(n.type, 16))


def _store_first(b, address, v, n):
    where = first_lanes(b, n)
    call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), v, pointer(b, address, f32x16.llvm), ir.Constant(I32, 1), where)


# --- Lanes


@instruction(f32x16(f32))
def splat(b, x):
    return broadcast(b, x)


@instruction(i32x16(intp))
def splat_i32(b, x):
    return broadcast(b, b.trunc(x, I32))


@instruction(f32(f32x16, intp))
def lane(b, v, i):
    """Lane i; i should be a constant."""
    return b.extract_element(v, i)


@instruction(intp(i32x16, intp))
def lane_i32(b, v, i):
    return b.sext(b.extract_element(v, i), I64)


@instruction(mask(intp))
def first_lanes(b, n):
    """True in the first n lanes."""
    return b.icmp_signed("<", ir.Constant(i32x16.llvm, list(range(16))), broadcast(b, b.trunc(n, I32)))


@instruction(i32x16())
def lane_numbers(b):
    return ir.Constant(i32x16.llvm, list(range(16)))


def halving(operation):
    """Reduces 16 lanes in one fixed tree: lane i with i + 8, then i + 4, i + 2, i + 1."""

    def emit(b, v):
        for width in (8, 4, 2, 1):
            v = operation(b, lanes(b, v, range(width)), lanes(b, v, range(width, 2 * width)))
        return b.extract_element(v, ir.Constant(I32, 0))

    return emit


# --- Arithmetic


@instruction(f32x16(f32x16, f32x16), i32x16(i32x16, i32x16))
def larger(b, x, y):
    """The larger of each lane; y where either is not a number."""
    return b.select(b.fcmp_ordered(">", x, y) if x.type.element == F32 else b.icmp_signed(">", x, y), x, y)


@instruction(f32x16(f32x16, f32x16))
def smaller(b, x, y):
    """The smaller of each lane; y where either is not a number."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@instruction(f32(f32x16))
def largest(b, v):
    """The largest lane, by a fixed tree."""
    return halving(larger)(b, v)


@instruction(intp(i32x16))
def largest_i32(b, v):
    return b.sext(halving(larger)(b, v), I64)


@instruction(f32(f32x16))
def total(b, v):
    """The sum of the lanes, by a fixed tree."""
    return halving(lambda b, x, y: b.fadd(x, y))(b, v)


@instruction(intp(i32x16))
def total_i32(b, v):
    return b.sext(halving(lambda b, x, y: b.add(x, y))(b, v), I64)


@instruction(f32x16(f32x16, f32x16, f32x16), f32(f32, f32, f32), f64(f64, f64, f64))
def fma(b, x, y, z):
    """x * y + z, rounded once (twice on a CPU without the instruction)."""
    if not target.has_fma():
        return b.fadd(b.fmul(x, y), z)
    suffix = {F32: "f32", F64: "f64", f32x16.llvm: "v16f32"}[x.type]
    return call(b, f"llvm.fma.{suffix}", x.type, x, y, z)


@instruction(f32x16(f32x16))
def absolute(b, v):
    return b.bitcast(b.and_(b.bitcast(v, i32x16.llvm), constant(i32x16.llvm, 0x7FFFFFFF)), f32x16.llvm)


@instruction(f32x16(f32x16))
def rint(b, v):
    """Rounded to an integral value, half to even; |v| < 2^22."""
    if target.has_rint():
        return call(b, "llvm.rint.v16f32", f32x16.llvm, v)
    shift = constant(f32x16.llvm, 1.5 * 2.0**23)  # where floats are 1 apart
    return b.fsub(b.fadd(v, shift), shift)


@instruction(i32x16(f32x16))
def rounded(b, v):
    """Rounded to i32, half to even; |v| < 2^22. Any number comes out for what is not a number."""
    if target.has_rint():
        return call(b, "llvm.lrint.v16i32.v16f32", i32x16.llvm, v)
    return b.fptosi(rint(b, b.select(b.fcmp_unordered("uno", v, v), ir.Constant(f32x16.llvm, None), v)), i32x16.llvm)


@instruction(i32x16(f32x16))
def to_i32(b, v):
    """Truncated towards zero; lanes must fit."""
    return b.fptosi(v, i32x16.llvm)


@instruction(f32x16(i32x16))
def to_f32(b, v):
    return b.sitofp(v, f32x16.llvm)


@instruction(i32x16(f32x16))
def bits(b, v):
    """The bits of the floats."""
    return b.bitcast(v, i32x16.llvm)


@instruction(f32x16(i32x16))
def floats(b, v):
    """The floats with these bits."""
    return b.bitcast(v, f32x16.llvm)


# --- Comparing and choosing


@instruction(mask(f32x16, f32x16))
def greater(b, x, y):
    """False where either is not a number."""
    return b.fcmp_ordered(">", x, y)


@instruction(mask(i32x16, i32x16))
def greater_i32(b, x, y):
    return b.icmp_signed(">", x, y)


@instruction(boolean(mask))
def any_lane(b, where):
    return b.icmp_unsigned("!=", b.bitcast(where, I16), ir.Constant(I16, 0))


@instruction(f32x16(mask, f32x16, f32x16), i32x16(mask, i32x16, i32x16))
def choose(b, where, x, y):
    """x where true, else y."""
    return b.select(where, x, y)


# --- Operators


def _scalar_shift(operation):
    return lambda b, v, n: getattr(b, operation)(v, broadcast(b, b.trunc(n, I32)))


for _vector, _operations in {
    f32x16: {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"},
    i32x16: {operator.add: "add", operator.sub: "sub", operator.mul: "mul"},
}.items():
    for _operator, _name in _operations.items():
        register(_operator, _vector(_vector, _vector), lambda b, x, y, name=_name: getattr(b, name)(x, y))
for _vector in (i8x64, i32x16, mask):
    for _operator, _name in {operator.and_: "and_", operator.or_: "or_", operator.xor: "xor"}.items():
        register(_operator, _vector(_vector, _vector), lambda b, x, y, name=_name: getattr(b, name)(x, y))
register(operator.lshift, i32x16(i32x16, intp), _scalar_shift("shl"))
register(operator.rshift, i32x16(i32x16, intp), _scalar_shift("ashr"))
register(operator.neg, f32x16(f32x16), lambda b, v: b.fneg(v))
register(operator.neg, i32x16(i32x16), lambda b, v: b.neg(v))
