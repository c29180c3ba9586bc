"""out = x / size of x * weight (+ bias), row by row or head by head, and rows in int8 too; out may be x.

The order of arithmetic: thread i sums the squares of columns i, i + B, ... by fma; a warp's lanes are added up by exchange (16, 8,
4, 2, 1), then the block's warps ascending. A row takes a block of B threads, a head a warp (B = 32): nothing depends on the
number of rows. Bytes: x once, from the cache a second (and third) time, out once. One token waits for latency, not bandwidth.
"""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cuda.kernels.faults import report
from llmcli.backends.cuda.kernels.platform import SIMULATED, WARP, cuda, device, fma, kernel, lane_sum, made, product
from llmcli.backends.cuda.kernels.quantize import RECORD, quantize_group
from llmcli.backends.cuda.kernels.step import HEADER, MOST, OUTPUTS
from llmcli.backends.cuda.kernels.sums import block_sum

F = np.float32
BLOCK = 512 if not SIMULATED else 64
WARPS = BLOCK // WARP
FEW = 8
"""Up to so many rows, several blocks quantize one: by itself a block would take longer for that than for all else."""
HEAD_BLOCK = 128 if not SIMULATED else 32
HEAD_WARPS = HEAD_BLOCK // WARP
ZERO, ONE, INFINITY = F(0), F(1), F(np.inf)
sum_of_block = block_sum(WARPS)


@device
def plain_sum(x, start, columns, first, stride):
    sum_ = ZERO
    for c in range(first, columns, stride):
        sum_ = sum_ + x[start + c]
    return sum_


@device
def squares(x, start, columns, first, stride, centre):
    """One thread's share of the sum of (x - centre)^2."""
    sum_ = ZERO
    for c in range(first, columns, stride):
        d = x[start + c] - centre
        sum_ = fma(d, d, sum_)
    return sum_


@device
def normed(value, centre, factor, weight, has_weight, bias, has_bias, at):
    y = product(value - centre, factor)
    if has_weight:
        y = product(y, weight[at])
    return y + bias[at] if has_bias else y


@device
def token_of(step, outputs, row):
    """The row of the step that a row of `outputs` is."""
    return step[HEADER + OUTPUTS * step[MOST] + row] if outputs else row


def measure(centred):
    """The device function by which a block finds what a row is shifted and multiplied by; a sum that is no number is a fault."""

    @device
    def centre_and_factor(step, outputs, fault, op, row, x, start, columns, eps):
        partials = cuda.shared.array(WARPS, np.float32)
        thread, centre = cuda.threadIdx.x, ZERO
        if centred:
            centre = sum_of_block(plain_sum(x, start, columns, thread, BLOCK), partials) / F(columns)
        sum_ = sum_of_block(squares(x, start, columns, thread, BLOCK, centre), partials)
        if thread == 0 and not sum_ < INFINITY:
            report(fault, op, token_of(step, outputs, row))
        return centre, ONE / F(math.sqrt(sum_ / F(columns) + F(eps)))

    return centre_and_factor


@made
def rows(centred):
    """A block normalises a row. weight, bias: f32 [columns], or anything where has_... is 0."""
    centre_and_factor = measure(centred)

    @kernel
    def norm_rows(
        step, outputs, fault, op, x, x_start, x_stride, weight, has_weight, bias, has_bias, out, out_start, out_stride, columns, eps
    ):
        row, thread = cuda.blockIdx.x, cuda.threadIdx.x
        if row >= step[outputs]:
            return
        start, to = x_start + row * x_stride, out_start + row * out_stride
        centre, factor = centre_and_factor(step, outputs, fault, op, row, x, start, columns, eps)
        for c in range(thread, columns, BLOCK):
            out[to + c] = normed(x[start + c], centre, factor, weight, has_weight, bias, has_bias, c)

    return norm_rows


@made
def quantized_rows(centred):
    """The same, and the result to records (quantize.py); `out` gets it only where `kept`. Grid (parts, rows): each of a row's blocks
    measures all of it and writes its part of the columns."""
    centre_and_factor = measure(centred)

    @kernel
    def norm_quantize(
        step, outputs, fault, op, x, x_start, x_stride, weight, has_weight, bias, has_bias, out, out_start, out_stride, columns, eps,
        kept, codes,
    ):  # fmt: skip
        part, row, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        if row >= step[outputs]:
            return
        start, to = x_start + row * x_stride, out_start + row * out_stride
        centre, factor = centre_and_factor(step, outputs, fault, op, row, x, start, columns, eps)
        chunks, c = (columns + 255) // 256, part * BLOCK + thread
        while c < chunks * 256:
            value = ZERO
            if c < columns:
                value = normed(x[start + c], centre, factor, weight, has_weight, bias, has_bias, c)
                if kept:
                    out[to + c] = value
            quantize_group(value, codes, (row * chunks + c // 256) * RECORD, c % 256 // WARP, c % WARP)
            c += cuda.gridDim.x * BLOCK

    return norm_quantize


@made
def segments(centred):
    """A warp normalises a head: `heads` of `columns` each in a row; weight_step: from one head's weight to the next, or 0."""

    @kernel
    def norm_heads(
        step, outputs, fault, op, x, x_start, x_stride, weight, has_weight, bias, has_bias, out, out_start, out_stride, columns, eps,
        heads, weight_step,
    ):  # fmt: skip
        lane = cuda.threadIdx.x % WARP
        item = cuda.blockIdx.x * HEAD_WARPS + cuda.threadIdx.x // WARP
        row, head = item // heads, item % heads
        end = columns if row < step[outputs] else 0  # a warp without a head sums nothing: all of a block sum equally often
        start, to, centre = x_start + row * x_stride + head * columns, out_start + row * out_stride + head * columns, ZERO
        if centred:
            centre = lane_sum(plain_sum(x, start, end, lane, WARP)) / F(columns)
        sum_ = lane_sum(squares(x, start, end, lane, WARP, centre))
        if lane == 0 and end and not sum_ < INFINITY:
            report(fault, op, token_of(step, outputs, row))
        factor = ONE / F(math.sqrt(sum_ / F(columns) + F(eps)))
        for c in range(lane, end, WARP):
            at = head * weight_step + c
            out[to + c] = normed(x[start + c], centre, factor, weight, has_weight, bias, has_bias, at)

    return norm_heads


ROWS = {"rms": rows(False), "layer": rows(True)}
QUANTIZED = {"rms": quantized_rows(False), "layer": quantized_rows(True)}
HEADS = {"rms": segments(False), "layer": segments(True)}


def norm(kind: str, most: int, heads: int):
    """(kernel, grid, block) for up to `most` rows; with several heads the kernel takes `heads` and `weight_step` too."""
    if heads == 1:
        return ROWS[kind], most, BLOCK
    return HEADS[kind], -(-most * heads // HEAD_WARPS), HEAD_BLOCK


def norm_quantize(kind: str, most: int, columns: int, in_place: bool):
    """Likewise, for rows that are quantized. in_place: the result is kept where x is, so that nobody else may still read it."""
    parts = 1 if in_place or most > FEW else -(-columns // BLOCK)
    return QUANTIZED[kind], (parts, most), BLOCK
