"""out = x @ weights.T + bias, for every weight format. Lanes are output rows, so nothing is summed across lanes.

A chunk is a run of 16-row tiles; each tile of weights meets all tokens of the step, M at a time, while it is in the
cache. A number's arithmetic is the same whatever M: groups (or columns) ascending, one fma each, then bias, then add.

What bounds it: one token streams the weights (0.5625 or 1.0625 bytes each) from memory. Many tokens need, for a token, 16
rows and a group of 32, 8 dot products of 64 bytes, a conversion, a multiplication and an fma; where the first and the last two
share their units (Zen 4), that is 10 cycles and 80% of what dot products alone would reach. Looking nibbles up would come on
top for every M tokens, so the tallest tile does it once for all of them, into memory that stays in the cache.
"""

from __future__ import annotations

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels.dot import (
    add_stored,
    add_to_each,
    dot,
    high_nibbles,
    load_sums,
    load_table,
    lookup,
    low_nibbles,
    multiply_add,
    offset_add,
    rows_of,
    scale_add,
    store_rows,
    zeros,
)
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.vectors import field, load_bf16, load_f16, load_f32x16, load_first, load_i8x64, store_vector
from llmcli.backends.cpu.records import HEADER, LINEAR

INT4_BYTES, INT8_BYTES = 4 * 64, 8 * 64
"""A group of 32 columns of 16 rows."""


@inline
def token_blocks(args, height):
    """Blocks of `height` tokens in this step."""
    header = field(args, LINEAR.header)
    n = field(header, HEADER.outputs) if field(args, LINEAR.outputs) else field(header, HEADER.tokens)
    return (n + height - 1) // height


@inline
def last_tile(args, chunk):
    """One past the chunk's last tile of 16 rows."""
    return min((chunk + 1) * field(args, LINEAR.chunk_tiles), (field(args, LINEAR.rows) + 15) // 16)


@inline
def whole(args, chunk, height):
    """What a chunk multiplies: its tiles (from, to), its blocks of tokens (first, count), where its matrix starts
    behind `weights` (and so its scales behind theirs), and the address of its bias."""
    tile = chunk * field(args, LINEAR.chunk_tiles)
    return tile, last_tile(args, chunk), 0, token_blocks(args, height), 0, field(args, LINEAR.bias)


@inline
def finish(args, bias, tile, first_token, acc):
    """Bias, addition and store of one tile of results."""
    n = min(field(args, LINEAR.rows) - tile * 16, 16)
    stride = field(args, LINEAR.out_stride)
    out = field(args, LINEAR.out) + first_token * stride + tile * 64
    if bias:
        acc = add_to_each(acc, load_first(bias + tile * 64, n))
    if field(args, LINEAR.add):
        acc = add_stored(out, stride, acc, n)
    store_rows(out, stride, acc, n)


@inline
def int4_products(products, args, w, x):
    """One group: nibbles are looked up in a table of 16 codes (code + 128)."""
    height = rows_of(products)
    table = load_table(field(args, LINEAR.codes))
    for j in range(4):
        packed = load_i8x64(w + j * 64)
        products = dot(products, lookup(table, low_nibbles(packed)), x + j * 4 * height)
        products = dot(products, lookup(table, high_nibbles(packed)), x + (4 + j) * 4 * height)
    return products


@inline
def int8_products(products, args, w, x):
    """One group: bytes are code + 128."""
    for j in range(8):
        products = dot(products, load_i8x64(w + j * 64), x + j * 4 * rows_of(products))
    return products


@inline
def as_stored(args, w, groups, thread):
    return w


@inline
def int4_as_bytes(args, w, groups, thread):
    """A tile of 16 rows in the thread's scratch memory, as int8 would have it stored: the address."""
    scratch = field(args, LINEAR.scratch) + thread * field(args, LINEAR.scratch_bytes)
    table = load_table(field(args, LINEAR.codes))
    for group in range(groups):
        for j in range(4):
            packed, to = load_i8x64(w + (group * 4 + j) * 64), scratch + (group * 8 + j) * 64
            store_vector(to, lookup(table, low_nibbles(packed)))
            store_vector(to + 4 * 64, lookup(table, high_nibbles(packed)))
    return scratch


def integers(multiply, size, part, expand=None, offsets=False):
    """The factory for an integer format: how a group of `size` bytes is multiplied. part: see `whole`; expand: how a tile for many
    tokens becomes int8's first; offsets: weights are code * scale + offset."""

    def factory(M):
        zero = zeros(M)
        once = expand is not None and M == target.tile()
        prepare, product, step = (expand, int8_products, INT8_BYTES) if once else (as_stored, multiply, size)

        def kernel(args, chunk, thread):
            groups = (field(args, LINEAR.columns) + 31) // 32
            start, end, first, blocks, matrix, bias = part(args, chunk, M)
            before = first * groups * M
            for tile in range(start, end):
                x = field(args, LINEAR.x) + before * 32
                x_scales, x_sums = field(args, LINEAR.x_scales) + before * 4, field(args, LINEAR.x_sums) + before * 4
                weights = prepare(args, field(args, LINEAR.weights) + matrix + tile * groups * size, groups, thread)
                for block in range(first, first + blocks):
                    w = weights
                    w_scales = field(args, LINEAR.weight_scales) + matrix + tile * groups * 32
                    w_offsets = field(args, LINEAR.weight_offsets) + matrix + tile * groups * 32
                    acc = zero()
                    for _ in range(groups):
                        products = product(load_sums(acc, x_sums), args, w, x)
                        acc = scale_add(acc, products, load_f16(w_scales), x_scales)
                        if offsets:
                            acc = offset_add(acc, load_f16(w_offsets), x_sums, x_scales)
                        w, w_scales, w_offsets = w + step, w_scales + 32, w_offsets + 32
                        x, x_scales, x_sums = x + 32 * M, x_scales + 4 * M, x_sums + 4 * M
                    finish(args, bias, tile, block * M, acc)

        return kernel

    return factory


def floats(load_weights, size, part):
    """The factory for a float format: how 16 weights of `size` bytes each are loaded as f32."""

    def factory(M):
        zero = zeros(M)

        def kernel(args, chunk, thread):
            columns = field(args, LINEAR.columns)
            stride = field(args, LINEAR.x_scales)
            start, end, first, blocks, matrix, bias = part(args, chunk, M)
            for tile in range(start, end):
                weights = field(args, LINEAR.weights) + matrix + tile * columns * (16 * size)
                for block in range(first, first + blocks):
                    x = field(args, LINEAR.x) + block * M * stride
                    acc = zero()
                    for k in range(columns):
                        acc = multiply_add(acc, load_weights(weights + k * (16 * size)), x + k * 4, stride)
                    finish(args, bias, tile, block * M, acc)

        return kernel

    return factory


def products(part):
    """The factories of a product in every format, whose chunks are what `part` says."""
    return {
        "int4": integers(int4_products, INT4_BYTES, part, int4_as_bytes),
        "int4_offset": integers(int4_products, INT4_BYTES, part, int4_as_bytes, offsets=True),
        "int8": integers(int8_products, INT8_BYTES, part),
        "f32": floats(load_f32x16, 4, part),
        "f16": floats(load_f16, 2, part),
        "bf16": floats(load_bf16, 2, part),
    }


KERNELS = products(whole)
