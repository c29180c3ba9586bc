"""Activations to int8, with one scale for each token and group of 32 columns: the CPU's rule, and so its bits.

A token's row is a run of records, one for each chunk of eight groups, zeros behind the last column:

    256 bytes   codes of 256 columns, signed
     32 bytes   scales f32 [8]
     32 bytes   sums of each group's codes times its scale, f32 [8], which weights with offsets need

A warp is a group, a lane a column, a block a record. Reads 4 bytes a column, writes 1.25.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import (
    bits_float,
    cuda,
    device,
    float_bits,
    kernel,
    nearest,
    product,
    quotient,
    store4,
    word_max,
    word_sum,
)

RECORD = 320
SCALES, SUMS = 256, 288
"""Where they begin in a record."""
BLOCK = 256
F = np.float32
MOST, INFINITY, NOTHING = F(127), F(np.inf), F(0)
MAGNITUDE = np.int32(0x7FFFFFFF)


@device
def quantized(x):
    """A warp's group, a column x in each lane -> (this lane's code, the group's scale, the sum of its codes). A group is zero when its
    largest magnitude is, or is so small that 127 / largest overflows. One with infinity or NaN gets that as its scale: bits of magnitudes
    compare as the floats do, with NaN on top."""
    largest = bits_float(word_max(float_bits(x) & MAGNITUDE))
    inverse = quotient(MOST, largest)
    code = np.int32(0)
    if NOTHING < inverse and inverse < INFINITY:
        code = nearest(product(x, inverse))
    scale = quotient(largest, MOST)
    if inverse == INFINITY:
        scale = NOTHING
    return code, scale, word_sum(code)


@device
def store_group(codes, record, group, lane, code, scale, total):
    """What `quantized` found, as group 0 .. 7 of a record."""
    codes[record + group * 32 + lane] = np.uint8(code & 255)
    if lane == 0:
        store4(codes, record + SCALES + group * 4, float_bits(scale))
        store4(codes, record + SUMS + group * 4, float_bits(product(F(total), scale)))


@device
def quantize_group(x, codes, record, group, lane):
    """One lane's column x of a group of a record."""
    code, scale, total = quantized(x)
    store_group(codes, record, group, lane, code, scale, total)


@device
def quantize_row(x, at, columns, codes, row):
    """The block's chunk of one row of x, whose first column is x[at]."""
    chunk = cuda.blockIdx.x
    group, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    column = chunk * 256 + cuda.threadIdx.x
    value = NOTHING
    if column < columns:
        value = x[at + column]
    quantize_group(value, codes, (row * cuda.gridDim.x + chunk) * RECORD, group, lane)


@kernel
def quantize(step, count, x, x_start, x_stride, columns, codes):
    """Rows 0 .. step[count] of x to records. Grid (chunks, tokens), 256 threads."""
    row = cuda.blockIdx.y
    if row < step[count]:
        quantize_row(x, x_start + row * x_stride, columns, codes, row)


@kernel
def quantize_choices(step, chosen, x, x_start, x_stride, columns, codes):
    """The same for `chosen` rows of each token (experts.py)."""
    row = cuda.blockIdx.y
    if row < step[0] * chosen:
        quantize_row(x, x_start + row * x_stride, columns, codes, row)


def row_bytes(columns):
    """Bytes of a token's records."""
    return -(-columns // 256) * RECORD


def launch(tokens, columns):
    """Kernel, grid and block for up to so many tokens."""
    return quantize, (-(-columns // 256), tokens), BLOCK
