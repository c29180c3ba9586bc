"""out[t] = row tokens[t] of the embedding, read out of the repacked matrix (weights.py). One block is one token; a thread takes every
256th column. Bytes: one row's codes and scales read, 4 bytes a column written."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels import codes
from llmcli.backends.cuda.kernels.platform import (
    SIMULATED,
    bits_float,
    cuda,
    device,
    half_to_float,
    kernel,
    load2,
    load4,
    made,
    permute,
    product,
)
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.weights import FLOAT_BYTES

BLOCK = 256 if not SIMULATED else 32
F = np.float32


@device
def signed(byte):
    return byte - 256 if byte > 127 else byte


@device
def int4_code(weights, at, row, in_group, t0, t1, t2, t3):
    number = load4(weights, at + row * 16 + in_group // 8 * 4) >> in_group % 8 * 4 & 15
    table = permute(t0, t1, number & 7) if number < 8 else permute(t2, t3, number & 7)
    return signed(table & 255)


@device
def int8_code(weights, at, row, in_group, t0, t1, t2, t3):
    return signed(load4(weights, at + in_group // 16 * 512 + row * 16 + in_group % 16 // 4 * 4) >> in_group % 4 * 8 & 255)


CODE = {"int4": int4_code, "int8": int8_code}


@made
def integers(kind):
    """The kernel of an integer kind: code * scale (+ offset). Grid: tokens."""
    code, size, shifted = CODE[kind.removesuffix("_offset")], codes.GROUP_BYTES[kind.removesuffix("_offset")], kind.endswith("_offset")

    @kernel
    def embed(step, tokens_at, weights, scales, offsets, t0, t1, t2, t3, columns, out, out_start, out_stride):
        token = cuda.blockIdx.x
        if token >= step[0]:
            return
        id_ = step[tokens_at + token]
        tile, row = id_ // 32, id_ % 32
        groups = (columns + 31) // 32
        chunks = (groups + 7) // 8
        for column in range(cuda.threadIdx.x, columns, BLOCK):
            group = column // 32
            number = code(weights, (tile * groups + group) * size, row, column % 32, t0, t1, t2, t3)
            at = ((tile * chunks + group // 8) * 32 + row) * 16 + group % 8 * 2
            value = product(F(number), half_to_float(load2(weights, scales + at)))
            if shifted:
                value = value + half_to_float(load2(weights, offsets + at))
            out[out_start + token * out_stride + column] = value

    return embed


@device
def f32_at(weights, number):
    return bits_float(load4(weights, number * 4))


@device
def f16_at(weights, number):
    return half_to_float(load2(weights, number * 2))


@device
def bf16_at(weights, number):
    return bits_float(load2(weights, number * 2) << 16)


VALUE = {"f32": f32_at, "f16": f16_at, "bf16": bf16_at}


@made
def floats(format):
    """The kernel of a float format."""
    value_at, width = VALUE[format], 16 // FLOAT_BYTES[format]

    @kernel
    def embed(step, tokens_at, weights, scales, offsets, t0, t1, t2, t3, columns, out, out_start, out_stride):
        token = cuda.blockIdx.x
        if token >= step[0]:
            return
        id_ = step[tokens_at + token]
        tile, row = id_ // 32, id_ % 32
        units = (columns + width - 1) // width
        for column in range(cuda.threadIdx.x, columns, BLOCK):
            number = ((tile * units + column // width) * 32 + row) * width + column % width
            out[out_start + token * out_stride + column] = value_at(weights, number)

    return embed


def embed(format, place, tokens, step, tokens_at, weights, out):
    """out[t] = the matrix's row step[tokens_at + t]. Arguments as of linear.linear."""
    kernel_ = floats(format) if format in FLOAT_BYTES else integers(codes.kind(format))
    table = codes.table(format)
    return Launch(kernel_, tokens, BLOCK, (step, tokens_at, weights, place.scales, place.offsets, *table, place.columns, *out))
