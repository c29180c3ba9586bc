"""NVIDIA's instructions for kernels: what platform.py lists, as inline PTX and LLVM operations. twins.py says the same in Python.

Loads are LLVM's, marked as of memory that is constant during a kernel: the compiler may move them. Arithmetic is assembly without side
effects. Copies and waits are volatile, in the order in which they are written.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import cuda, types
from numba.core import cgutils
from numba.cuda.extending import intrinsic

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()
i32, i64, f32 = types.int32, types.int64, types.float32
EVERY_LANE = 0xFFFFFFFF

kernel = cuda.jit


made = functools.cache


def kernel_of(registers):
    """A kernel that may use so many registers a thread."""
    return cuda.jit(max_registers=registers)


def device(function):
    return cuda.jit(function, device=True, forceinline=True)


def _assembly(builder, result, operands, code, constraints, effects=False, together=False):
    """together: all lanes of a warp, so that the compiler may not copy it into branches that some of them take."""
    asm = ir.InlineAsm(ir.FunctionType(result, [o.type for o in operands]), code, constraints, side_effect=effects or together)
    return builder.call(asm, operands, attrs=("convergent",) if together else ())


def _several(builder, struct, count):
    return cgutils.pack_array(builder, [builder.extract_value(struct, i) for i in range(count)])


def _address(context, builder, kind, array, at):
    """The address of element `at` of a flat array, as an i64."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.ptrtoint(builder.gep(data, [at]), I64)


# --- Arithmetic of one thread


@intrinsic
def dp4a(typing, a, b, c):
    def emit(context, builder, signature, args):
        return _assembly(builder, I32, args, "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r")

    return i32(i32, i32, i32), emit


@intrinsic
def permute(typing, a, b, selector):
    def emit(context, builder, signature, args):
        return _assembly(builder, I32, args, "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r")

    return i32(i32, i32, i32), emit


@intrinsic
def fma(typing, a, b, c):
    def emit(context, builder, signature, args):
        return _assembly(builder, F32, args, "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f")

    return f32(f32, f32, f32), emit


@intrinsic
def product(typing, a, b):
    def emit(context, builder, signature, args):
        return _assembly(builder, F32, args, "mul.rn.f32 $0, $1, $2;", "=f,f,f")

    return f32(f32, f32), emit


@intrinsic
def quotient(typing, a, b):
    def emit(context, builder, signature, args):
        return _assembly(builder, F32, args, "div.rn.f32 $0, $1, $2;", "=f,f,f")

    return f32(f32, f32), emit


@intrinsic
def nearest(typing, x):
    def emit(context, builder, signature, args):
        return _assembly(builder, I32, args, "cvt.rni.s32.f32 $0, $1;", "=r,f")

    return i32(f32), emit


@intrinsic
def half_to_float(typing, bits):
    def emit(context, builder, signature, args):
        return _assembly(builder, F32, [builder.trunc(args[0], I16)], "cvt.f32.f16 $0, $1;", "=f,h")

    return f32(i32), emit


@intrinsic
def float_to_half(typing, x):
    def emit(context, builder, signature, args):
        return builder.zext(_assembly(builder, I16, args, "cvt.rn.f16.f32 $0, $1;", "=h,f"), I32)

    return i32(f32), emit


@intrinsic
def bits_float(typing, bits):
    def emit(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return f32(i32), emit


@intrinsic
def float_bits(typing, x):
    def emit(context, builder, signature, args):
        return builder.bitcast(args[0], I32)

    return i32(f32), emit


# --- Loads and copies


def _constant(context, builder, kind, array, at, type_):
    """Loads memory that is constant during a kernel, in the global address space: ld.global.nc."""
    data = context.make_array(kind)(context, builder, array).data
    place = builder.addrspacecast(builder.gep(data, [at]), ir.IntType(8).as_pointer(1), "global")
    found = builder.load(builder.bitcast(place, type_.as_pointer(1)), align=_size(type_))
    found.set_metadata("invariant.load", builder.module.add_metadata([]))
    return found


def _size(type_):
    return type_.count * _size(type_.element) if isinstance(type_, ir.VectorType) else type_.width // 8


def _words(count):
    @intrinsic
    def load(typing, array, at):
        def emit(context, builder, signature, args):
            found = _constant(context, builder, signature.args[0], *args, ir.VectorType(I32, count))
            return cgutils.pack_array(builder, [builder.extract_element(found, I32(i)) for i in range(count)])

        return types.UniTuple(i32, count)(array, i64), emit

    return load


load16 = _words(4)
load8 = _words(2)


@intrinsic
def load4(typing, array, at):
    def emit(context, builder, signature, args):
        return _constant(context, builder, signature.args[0], *args, I32)

    return i32(array, i64), emit


@intrinsic
def load2(typing, array, at):
    def emit(context, builder, signature, args):
        return builder.zext(_constant(context, builder, signature.args[0], *args, I16), I32)

    return i32(array, i64), emit


@intrinsic
def store4(typing, array, at, word):
    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.bitcast(builder.gep(data, [args[1]]), I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, i64, i32), emit


def _shared(count):
    """An ordinary load of several words at once, not assembly: the compiler knows what it must not cross."""

    @intrinsic
    def load(typing, words, at):
        def emit(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            place = builder.bitcast(builder.gep(data, [args[1]]), ir.VectorType(I32, count).as_pointer())
            found = builder.load(place, align=4 * count)
            return cgutils.pack_array(builder, [builder.extract_element(found, I32(i)) for i in range(count)])

        return types.UniTuple(i32, count)(words, i64), emit

    return load


@intrinsic
def shared4(typing, words, at):
    """Without what an index costs that might be negative."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]), align=4)

    return i32(words, i64), emit


shared8 = _shared(2)
shared16 = _shared(4)


@intrinsic
def copy16(typing, words, at, array, start):
    code = """{
        .reg .u64 shared;
        .reg .u32 address;
        cvta.to.shared.u64 shared, $0;
        cvt.u32.u64 address, shared;
        cp.async.cg.shared.global [address], [$1], 16;
    }"""

    def emit(context, builder, signature, args):
        to = _address(context, builder, signature.args[0], args[0], args[1])
        source = _address(context, builder, signature.args[2], args[2], args[3])
        _assembly(builder, ir.VoidType(), [to, source], code, "l,l,~{memory}", effects=True)
        return context.get_dummy_value()

    return types.void(words, i64, array, i64), emit


def _ordered(code):
    @intrinsic
    def instruction(typing):
        def emit(context, builder, signature, args):
            _assembly(builder, ir.VoidType(), [], code, "~{memory}", effects=True)
            return context.get_dummy_value()

        return types.void(), emit

    return instruction


copies_commit = _ordered("cp.async.commit_group;")
copies_wait = _ordered("cp.async.wait_group 0;")


def copies_wait_but(groups):
    return _ordered(f"cp.async.wait_group {groups};")


# --- A warp


@device
def lane_sum(value):
    for step in (16, 8, 4, 2, 1):
        value = value + cuda.shfl_xor_sync(EVERY_LANE, value, step)
    return value


@device
def lane_max(value):
    for step in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(EVERY_LANE, value, step)
        value = value if value > other else other
    return value


def _reduction(operation):
    @intrinsic
    def over_lanes(typing, word):
        def emit(context, builder, signature, args):
            code = f"redux.sync.{operation}.s32 $0, $1, {EVERY_LANE};"
            return _assembly(builder, I32, args, code, "=r,r", together=True)

        return i32(i32), emit

    return over_lanes


word_sum = _reduction("add")
word_max = _reduction("max")


@intrinsic
def mma_s8(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    code = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"

    def emit(context, builder, signature, args):
        result = ir.LiteralStructType([I32] * 4)
        return _several(builder, _assembly(builder, result, args, code, ",".join(["=r"] * 4 + ["r"] * 10), together=True), 4)

    return types.UniTuple(i32, 4)(*[i32] * 10), emit


@intrinsic
def mma_f16(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    code = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"

    def emit(context, builder, signature, args):
        result = ir.LiteralStructType([F32] * 4)
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
        return _several(builder, _assembly(builder, result, args, code, constraints, together=True), 4)

    return types.UniTuple(f32, 4)(*[i32] * 6, *[f32] * 4), emit


# --- Four floats


@intrinsic
def shared_floats(typing, floats, at):
    """An ordinary load, not assembly: the compiler knows what it must not cross."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.VectorType(F32, 4).as_pointer())
        found = builder.load(place, align=16)
        return cgutils.pack_array(builder, [builder.extract_element(found, I32(i)) for i in range(4)])

    return types.UniTuple(f32, 4)(floats, i64), emit
