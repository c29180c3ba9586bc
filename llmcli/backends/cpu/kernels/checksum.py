"""The 64-bit checksum of a tensor's bytes, in pieces that may be summed in any order.

With little-endian words w_i: sum mod 2^64 of mix(w_i + (i + 1) * STEP), where mix is a bijection. So one changed word
always changes the sum, and so do two exchanged words but for a chance of 2^-64.
"""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.instructions import I64, Vector, broadcast, constant, instruction, intp, lanes, load
from llmcli.backends.cpu.kernels.threads import atomic_add
from llmcli.backends.cpu.kernels.vectors import field
from llmcli.backends.cpu.records import CHECKSUM

PIECE = 1 << 20
"""Bytes in a chunk."""
STEP = 0x9E3779B97F4A7C15
FACTOR = 0xD6E8FEB86659FD93

i64x8 = Vector("i64", 8)


@instruction(i64x8())
def zero(b):
    return ir.Constant(i64x8.llvm, None)


@instruction(i64x8(i64x8, intp, intp))
def add_mixed(b, acc, address, index):
    """acc + mix(w + (index + 1 + lane) * STEP) for the 8 words w at an address."""
    before = broadcast(b, b.mul(index, ir.Constant(I64, STEP)), 8)
    own = ir.Constant(i64x8.llvm, [(n + 1) * STEP % 2**64 for n in range(8)])
    x = b.add(load(b, address, i64x8.llvm), b.add(before, own))
    half, factor = constant(i64x8.llvm, 32), constant(i64x8.llvm, FACTOR)
    for _ in range(2):
        x = b.mul(b.xor(x, b.lshr(x, half)), factor)
    return b.add(acc, b.xor(x, b.lshr(x, half)))


@instruction(intp(i64x8))
def total(b, v):
    for width in (4, 2, 1):
        v = b.add(lanes(b, v, range(width)), lanes(b, v, range(width, 2 * width)))
    return b.extract_element(v, ir.Constant(I64, 0))


def sum_words():
    def kernel(args, chunk, thread):
        data, start = field(args, CHECKSUM.data), field(args, CHECKSUM.start)
        acc = zero()
        for at in range(chunk * PIECE, min((chunk + 1) * PIECE, field(args, CHECKSUM.size)), 64):
            acc = add_mixed(acc, data + at, start + at // 8)
        atomic_add(field(args, CHECKSUM.out), total(acc))

    return kernel


KERNELS = {"sum": sum_words}
