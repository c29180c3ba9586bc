"""What threads say to each other, and how the compiled step calls kernels. Addresses of i64 must be multiples of 8."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.instructions import I8, I32, I64, boolean, call, instruction, intp, pointer, void


@instruction(intp(intp, intp))
def atomic_add(b, address, n):
    """Adds to an i64 and returns what it was."""
    return b.atomic_rmw("add", pointer(b, address, I64), n, "seq_cst")


@instruction(intp(intp))
def load_acquire(b, address):
    return b.load_atomic(pointer(b, address, I64), "acquire", 8)


@instruction(void(intp, intp))
def store_release(b, address, value):
    b.store_atomic(value, pointer(b, address, I64), "release", 8)


@instruction(boolean(intp, intp, intp))
def compare_exchange(b, address, expected, value):
    """Stores value if the i64 is as expected; says whether it did."""
    return b.extract_value(b.cmpxchg(pointer(b, address, I64), expected, value, "seq_cst", "seq_cst"), 1)


@instruction(void())
def pause(b):
    """Tells the CPU that this is a spin loop."""
    if target.is_x86():
        call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif target.architecture() == "aarch64":
        call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(I32, 1))


@instruction(void())
def sched_yield(b):
    """Gives the rest of the time slice to another thread (a C function; the only one kernels call)."""
    call(b, "sched_yield", I32)


@instruction(void(intp, intp, intp, intp))
def call_kernel(b, address, args, chunk, thread):
    """Calls a compiled kernel. Numba's convention: status = f(&result, &exception, args, chunk, thread)."""
    nothing = I8.as_pointer()
    unused = [cgutils.alloca_once(b, nothing) for _ in range(2)]
    kind = ir.FunctionType(I32, [nothing.as_pointer()] * 2 + [I64] * 3)
    b.call(b.inttoptr(address, kind.as_pointer()), [*unused, args, chunk, thread])
