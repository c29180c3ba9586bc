"""Products with matrices of f32, f16 and bf16: f32 activations and sums, no tensor cores.

Lanes are rows and warps are segments of K, as in decode.py: 16 bytes of a row (4 or 8 columns) a lane and load, columns ascending, one
fma each. Each block computes up to eight tokens, for which it reads its weights once; a prompt's blocks find them in the L2 cache.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.decode import HEIGHTS, SEGMENTS, finish_segments
from llmcli.backends.cuda.kernels.platform import bits_float, cuda, device, fma, half_to_float, kernel, load16, made
from llmcli.backends.cuda.weights import FLOAT_BYTES

F = np.float32
UPPER = np.int32(-65536)


@device
def f32_values(p0, p1, p2, p3):
    return bits_float(p0), bits_float(p1), bits_float(p2), bits_float(p3)


@device
def f16_values(p0, p1, p2, p3):
    return (
        half_to_float(p0 & 0xFFFF), half_to_float(p0 >> 16 & 0xFFFF), half_to_float(p1 & 0xFFFF), half_to_float(p1 >> 16 & 0xFFFF),
        half_to_float(p2 & 0xFFFF), half_to_float(p2 >> 16 & 0xFFFF), half_to_float(p3 & 0xFFFF), half_to_float(p3 >> 16 & 0xFFFF),
    )  # fmt: skip


@device
def bf16_values(p0, p1, p2, p3):
    return (
        bits_float(p0 << 16), bits_float(p0 & UPPER), bits_float(p1 << 16), bits_float(p1 & UPPER),
        bits_float(p2 << 16), bits_float(p2 & UPPER), bits_float(p3 << 16), bits_float(p3 & UPPER),
    )  # fmt: skip


VALUES = {"f32": f32_values, "f16": f16_values, "bf16": bf16_values}


@made
def floats(format, height, routed=False):
    """The kernel for `height` tokens; arguments as of decode.integers, with x an operand. Grid (tiles of 32 rows, blocks of tokens)."""
    values, width, merge = VALUES[format], 16 // FLOAT_BYTES[format], finish_segments(height)

    @device
    def add_column(acc, weight, x, at, x_stride, column, columns):
        if column < columns:
            for m in range(height):
                acc[m] = fma(weight, x[at + m * x_stride + column], acc[m])

    @kernel
    def multiply(
        step, which, each, weights, matrix_bytes, rows, columns, x, x_start, x_stride, x_of, ids, ids_start, ids_stride,
        bias, bias_at, out, out_start, out_stride, add,
    ):  # fmt: skip
        tile, first = cuda.blockIdx.x, cuda.blockIdx.y * height
        count = step[which] * each
        if first >= count:
            return
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        x_row, matrix = first, 0
        if routed:
            x_row = first // x_of
            matrix = ids[ids_start + first // each * ids_stride + first % each]
            if bias_at >= 0:
                bias_at += matrix * rows
        units = (columns + width - 1) // width
        per_segment = (units + SEGMENTS - 1) // SEGMENTS
        acc = cuda.local.array(height, np.float32)
        for m in range(height):
            acc[m] = F(0)
        at = x_start + x_row * x_stride
        base = matrix * matrix_bytes + (tile * units * 32 + lane) * 16
        for unit in range(warp * per_segment, min((warp + 1) * per_segment, units)):
            p0, p1, p2, p3 = load16(weights, base + unit * 512)
            found = values(p0, p1, p2, p3)
            add_column(acc, found[0], x, at, x_stride, unit * width, columns)
            add_column(acc, found[1], x, at, x_stride, unit * width + 1, columns)
            add_column(acc, found[2], x, at, x_stride, unit * width + 2, columns)
            add_column(acc, found[3], x, at, x_stride, unit * width + 3, columns)
            if width == 8:
                add_column(acc, found[4 % width], x, at, x_stride, unit * width + 4, columns)
                add_column(acc, found[5 % width], x, at, x_stride, unit * width + 5, columns)
                add_column(acc, found[6 % width], x, at, x_stride, unit * width + 6, columns)
                add_column(acc, found[7 % width], x, at, x_stride, unit * width + 7, columns)
        merge(acc, cuda.blockDim.x // 32, tile, rows, first, count, bias, bias_at, out, out_start, out_stride, add)

    return multiply


def launch(format, place, tokens):
    """Kernel, grid and block."""
    tall = next((h for h in HEIGHTS if h >= tokens), HEIGHTS[-1])
    return floats(format, tall), (-(-place.rows // 32), -(-tokens // tall)), 32 * SEGMENTS
