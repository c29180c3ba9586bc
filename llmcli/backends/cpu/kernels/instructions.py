"""How a function of kernels is made: vector types for Numba, and `@instruction`, which turns a function that emits LLVM
operations into one that kernels call.

    @instruction(f32x16(f32x16, f32x16))
    def larger(b, x, y):                                  # b: LLVM builder; x, y: LLVM values
        return b.select(b.fcmp_ordered(">", x, y), x, y)

makes larger(v, w) available in kernels. What it emits must not call libm or a run-time library.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import register_model

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
LANES = {"i1": I1, "i8": I8, "i16": I16, "i32": I32, "i64": I64, "f32": F32, "f64": F64}


class Vector(types.Type):
    """`count` lanes of `lane`; with `rows` a tile of that many vectors, held in registers."""

    def __init__(self, lane, count, rows=0):
        self.lane, self.count, self.rows = lane, count, rows
        super().__init__(name=f"{lane}x{count}" + (f"x{rows}" if rows else ""))

    @property
    def llvm(self):
        """The LLVM type: a vector, or an array of `rows` vectors."""
        vector = ir.VectorType(LANES[self.lane], self.count)
        return ir.ArrayType(vector, self.rows) if self.rows else vector


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe):
        super().__init__(dmm, fe, fe.llvm)


intp, f32, f64, boolean, void = types.intp, types.float32, types.float64, types.boolean, types.void
i8x64, i8x16, i16x16 = Vector("i8", 64), Vector("i8", 16), Vector("i16", 16)
i32x16, f32x16, mask = Vector("i32", 16), Vector("f32", 16), Vector("i1", 16)


def register(function, signature, emit):
    """Makes `function` callable in kernels with `signature`, as emit(builder, *values)."""

    class Template(ConcreteTemplate):
        key = function
        cases = [signature]

    infer_global(function, types.Function(Template))

    @lower_builtin(function, *signature.args)
    def lower(context, builder, _, args):
        value = emit(builder, *args)
        return context.get_dummy_value() if value is None else value


def instruction(*signatures):
    """Decorator of emit(builder, *values): the name becomes a function of kernels. All signatures share the body."""

    def decorate(emit):
        for signature in signatures:
            register(emit, signature, emit)
        return emit

    return decorate


inline = njit(forceinline=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator of a kernel's helper functions, which become part of the kernel."""


# --- What the bodies are built from


def constant(type_, value):
    """A scalar constant, or a vector of it in every lane."""
    return ir.Constant(type_, [value] * type_.count if isinstance(type_, ir.VectorType) else value)


def pointer(b, address, type_):
    return b.inttoptr(address, type_.as_pointer())


def load(b, address, type_, offset=0):
    """Loads a scalar or vector from any address, `offset` bytes on."""
    if offset:
        address = b.add(address, ir.Constant(I64, offset))
    return b.load(pointer(b, address, type_), align=1)


def store(b, address, value):
    b.store(value, pointer(b, address, value.type), align=1)


def broadcast(b, scalar, count=16):
    """A vector with the scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, constant(ir.VectorType(I32, count), 0))


def lanes(b, value, order):
    """A vector of the value's lanes in the given order."""
    return b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def call(b, name, result, *args):
    """Calls an LLVM intrinsic or a C function."""
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(function, args)
