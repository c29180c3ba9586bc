"""What this machine can do at most, and what time it is: kernels that measure instead of computing a model.

`read` streams over memory; `dot`, `pairs` and `fma` do nothing but the products of linear operations, of attention over codes and of
that over floats, on registers alone.
`clock` notes the time, as an operation of a step between two others.
"""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.dot import dot2, dot4, each
from llmcli.backends.cpu.kernels.instructions import (
    I8,
    I32,
    Vector,
    call,
    constant,
    f32x16,
    i8x64,
    i32x16,
    instruction,
    intp,
    load,
    pointer,
    store,
    void,
)
from llmcli.backends.cpu.kernels.vectors import field, fma
from llmcli.backends.cpu.records import CLOCK, LIMIT, READ, THREAD_BYTES

SUMS = 8
"""Sums that `read` keeps, so that no load waits for another's addition."""


@instruction(void(intp, intp))
def note_time(b, clock, address):
    """The time of a POSIX clock as a timespec, i64 seconds and i64 nanoseconds, at an address."""
    call(b, "clock_gettime", I32, b.trunc(clock, I32), pointer(b, address, I8))


def clock():
    def kernel(args, chunk, thread):
        note_time(field(args, CLOCK.clock), field(args, CLOCK.out))

    return kernel


def tile_of(vector, count, emit_step, start):
    """The instructions of `count` independent chains in registers: zero() -> tile, step(tile) -> tile, and keep(address, tile), which
    stores one vector that depends on all of them.

    emit_step(b, acc): the next value of a chain; start(m): what lies in every lane of number m at first."""
    tile = Vector(vector.lane, vector.count, count)

    @instruction(tile())
    def zero(b):
        return ir.Constant(tile.llvm, [constant(vector.llvm, start(m)) for m in range(count)])

    @instruction(tile(tile))
    def step(b, acc):
        return each(b, acc, lambda m: emit_step(b, b.extract_value(acc, m)))

    @instruction(void(intp, tile))
    def keep(b, address, acc):
        mixed = constant(i32x16.llvm, 0)
        for m in range(count):
            mixed = b.xor(mixed, b.bitcast(b.extract_value(acc, m), i32x16.llvm))
        store(b, address, mixed)

    return zero, step, keep


def chains(vector, emit_step, start):
    """The factory of a kernel that does `steps` products in each of `count` chains and keeps the last."""

    def factory(count):
        zero, step, keep = tile_of(vector, count, emit_step, start)

        def kernel(args, chunk, thread):
            acc = zero()
            for _ in range(field(args, LIMIT.steps)):
                acc = step(acc)
            keep(field(args, LIMIT.out) + thread * THREAD_BYTES, acc)

        return kernel

    return factory


def _dot(b, acc):
    """The sum so far is one factor, so that no product can be taken out of the loop or shared by two chains."""
    return dot4(b, acc, b.bitcast(acc, i8x64.llvm), constant(i8x64.llvm, 3))


def _pairs(b, acc):
    return dot2(b, acc, acc, constant(i32x16.llvm, 3 << 16 | 5))


def _fma(b, acc):
    return fma(b, acc, constant(f32x16.llvm, 0.5), constant(f32x16.llvm, 1.0))


SUM = Vector("i32", 16, SUMS)


@instruction(SUM())
def no_sums(b):
    return ir.Constant(SUM.llvm, None)


@instruction(SUM(SUM, intp))
def add_lines(b, sums, address):
    """SUMS times 64 bytes are read and added."""
    return each(b, sums, lambda m: b.add(b.extract_value(sums, m), load(b, address, i32x16.llvm, 64 * m)))


@instruction(void(intp, SUM))
def keep_sums(b, address, sums):
    total = constant(i32x16.llvm, 0)
    for m in range(SUMS):
        total = b.add(total, b.extract_value(sums, m))
    store(b, address, total)


def read():
    def kernel(args, chunk, thread):
        size = field(args, READ.chunk_bytes)
        start = field(args, READ.data) + chunk * size
        sums = no_sums()
        for at in range(start, start + size, 64 * SUMS):
            sums = add_lines(sums, at)
        keep_sums(field(args, READ.out) + thread * THREAD_BYTES, sums)

    return kernel


KERNELS = {
    "clock": clock,
    "read": read,
    "dot": chains(i32x16, _dot, lambda m: m + 1),
    "pairs": chains(i32x16, _pairs, lambda m: m + 1),
    "fma": chains(f32x16, _fma, lambda m: float(m)),
}
