"""out[t] = row token_ids[t] of the embedding, read out of the packed layout. One chunk is one token."""

from __future__ import annotations

from llvmlite import ir

from llmcli.backends.cpu.kernels.dot import high_nibbles, load_table, lookup, low_nibbles
from llmcli.backends.cpu.kernels.half import f16_to_f32
from llmcli.backends.cpu.kernels.instructions import (
    F32,
    I16,
    I32,
    f32,
    i8x64,
    i16x16,
    i32x16,
    inline,
    instruction,
    intp,
    lanes,
    load,
)
from llmcli.backends.cpu.kernels.vectors import field, load_f32, load_i32, splat, splat_i32, store_f32, store_first, to_f32
from llmcli.backends.cpu.records import EMBED, HEADER


@instruction(i8x64(intp))
def load_fours(b, address):
    """Four bytes every 64 bytes, four times; the other 48 lanes are undefined."""
    fours = ir.Constant(i32x16.llvm, ir.Undefined)
    for i in range(4):
        fours = b.insert_element(fours, load(b, address, I32, 64 * i), ir.Constant(I32, i))
    return b.bitcast(fours, i8x64.llvm)


@instruction(i32x16(i8x64))
def first_as_i32(b, v):
    """The first 16 unsigned bytes."""
    return b.zext(lanes(b, v, range(16)), i32x16.llvm)


@instruction(f32(intp))
def load_one_f16(b, address):
    one = b.insert_element(ir.Constant(i16x16.llvm, None), load(b, address, I16), ir.Constant(I32, 0))
    return b.extract_element(f16_to_f32(b, one), ir.Constant(I32, 0))


@instruction(f32(intp))
def load_one_bf16(b, address):
    return b.bitcast(b.shl(b.zext(load(b, address, I16), I32), ir.Constant(I32, 16)), F32)


@inline
def int4_codes(args, w):
    table, packed = load_table(field(args, EMBED.codes)), load_fours(w)
    return first_as_i32(lookup(table, low_nibbles(packed))), first_as_i32(lookup(table, high_nibbles(packed)))


@inline
def int8_codes(args, w):
    return first_as_i32(load_fours(w)), first_as_i32(load_fours(w + 256))


@inline
def token_of(args, chunk):
    return load_i32(field(field(args, EMBED.header), HEADER.token_ids) + 4 * chunk)


def integers(codes, size):
    """The factory for an integer format: the codes + 128 of one row in a group of `size` bytes."""

    def factory():
        def kernel(args, chunk, thread):
            token = token_of(args, chunk)
            tile, row = token // 16, token % 16
            columns = field(args, EMBED.columns)
            groups = (columns + 31) // 32
            w = field(args, EMBED.weights) + tile * groups * size + row * 4
            scales = field(args, EMBED.weight_scales) + tile * groups * 32 + row * 2
            out = field(args, EMBED.out) + chunk * field(args, EMBED.out_stride)
            for group in range(groups):
                a, b = codes(args, w + group * size)
                scale = splat(load_one_f16(scales + group * 32))
                left = columns - group * 32
                store_first(out + group * 128, to_f32(a - splat_i32(128)) * scale, left)
                store_first(out + group * 128 + 64, to_f32(b - splat_i32(128)) * scale, left - 16)

        return kernel

    return factory


def floats(load_one, size):
    """The factory for a float format: how one weight of `size` bytes is loaded as f32."""

    def factory():
        def kernel(args, chunk, thread):
            token = token_of(args, chunk)
            columns = field(args, EMBED.columns)
            w = field(args, EMBED.weights) + (token // 16 * columns * 16 + token % 16) * size
            out = field(args, EMBED.out) + chunk * field(args, EMBED.out_stride)
            for k in range(columns):
                store_f32(out + k * 4, load_one(w + k * (16 * size)))

        return kernel

    return factory


KERNELS = {
    "int4": integers(int4_codes, 256),
    "int8": integers(int8_codes, 512),
    "f32": floats(load_f32, 4),
    "f16": floats(load_one_f16, 2),
    "bf16": floats(load_one_bf16, 2),
}
