"""out = x @ weights.T + bias for many tokens, on the tensor cores: mma.sync m16n8k32 of signed bytes.

A warp computes 16 rows for TOKENS tokens. One mma is 16 rows by 8 tokens by one group of 32 columns, so its i32 results are the groups'
exact sums, and each is added as decode.py does it, in its order: groups ascending, a segment's sum to the total at its end. Which of the
32 columns is which of the instruction's does not matter as long as both sides agree: lane 4 g + q has columns 8 q .. 8 q + 7, which lie
side by side. Sums are started at a number whose bits are the float 1.5 * 2^23, from which they become floats by one subtraction.

Activations of the block's tokens, a record of 8 groups each, come to shared memory by asynchronous copies, two buffers in turn; weights
come straight to registers, one group ahead, since no other warp of the block needs them. For each mma: 12 floating-point instructions a
lane, 2.75 to unpack int4, three loads from shared memory.

`grouped` kernels are for mixtures of experts: a block's tokens are choices of one expert, wherever their rows are (groups.py).
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.codes import CODES, GROUP_BYTES, PACKED
from llmcli.backends.cuda.kernels.decode import finish, packing
from llmcli.backends.cuda.kernels.platform import (
    SIMULATED,
    bits_float,
    copies_commit,
    copies_wait_but,
    copy16,
    cuda,
    device,
    fma,
    half_to_float,
    kernel_of,
    load2,
    made,
    mma_s8,
    product,
    shared4,
    shared8,
)
from llmcli.backends.cuda.kernels.quantize import RECORD

WARPS, TOKENS = (2, 16) if SIMULATED else (8, 64)
REGISTERS = 128
"""Two blocks on a multiprocessor, so that one computes while the other waits at a barrier."""
TILES = TOKENS // 8
SUMS = 4 * TILES
F = np.float32
MAGIC, MAGIC_FLOAT = np.int32(0x4B400000), F(12582912)
wait_but_last = copies_wait_but(1)
HEADER, EACH = 1, 3
"""Of a list of blocks: how many there are, and expert, first and end of each."""


def staging(grouped):
    """The device function that starts to copy a record's first `pieces` times 16 bytes of each of the block's tokens to rows of `stride`
    words. starts: i64 [TOKENS], where the tokens' records begin, where they are not side by side."""

    @device
    def stage(buffer, to, x, first, starts, record, x_stride, stride, pieces):
        for i in range(cuda.threadIdx.x, TOKENS * pieces, WARPS * 32):
            token, piece = i // pieces, i % pieces
            start = starts[token] if grouped else (first + token) * x_stride
            copy16(buffer, to + token * stride + piece * 4, x, start + record + piece * 16)

    return stage


@made
def integers(kind, grouped=False):
    """The kernel of an integer kind. Grid (blocks of TOKENS tokens, blocks of 16 * WARPS rows), 32 * WARPS threads.

    Shared rows of 72 or 88 words: eight bytes of each of four lanes and four tokens fall into 32 different banks. blocks, order,
    matrix_bytes, x_of: of grouped kernels, whose blocks of tokens and experts are listed (groups.py); the row of x of choice c is
    c / x_of, that of out is c. Groups of eight tokens behind a block's last one are not computed."""
    stage, shifted, size = staging(grouped), kind.endswith("_offset"), GROUP_BYTES[packing(kind)]
    packed, unpack = PACKED[packing(kind)], CODES[packing(kind)]
    stride, pieces = (88, 20) if shifted else (72, 18)
    words, half = 2 * TOKENS * stride, TOKENS * stride

    @kernel_of(REGISTERS)
    def multiply(
        step, which, weights, matrix_bytes, scales, offsets, t0, t1, t2, t3, rows, groups, per_segment, x, x_of, blocks, order,
        bias, bias_at, out, out_start, out_stride, add,
    ):  # fmt: skip
        buffer = cuda.shared.array(words, np.int32, alignment=16)
        starts = cuda.shared.array(TOKENS, np.int64)
        first, count, matrix = cuda.blockIdx.x * TOKENS, step[which], 0
        if grouped:
            listed = HEADER + EACH * cuda.blockIdx.x
            if cuda.blockIdx.x >= blocks[0]:
                return
            matrix, first, count = blocks[listed], blocks[listed + 1], blocks[listed + 2]
            if bias_at >= 0:
                bias_at += matrix * rows
        if first >= count:
            return
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        g, q = lane // 4, lane % 4
        first_row = (cuda.blockIdx.y * WARPS + warp) * 16
        row = min(first_row, (rows - 1) // 16 * 16)  # a warp below the last row helps to copy, and stores nothing
        tile, in_tile = row // 32, row % 32 + g
        chunks = (groups + 7) // 8
        x_stride = chunks * RECORD
        if grouped:
            for i in range(cuda.threadIdx.x, TOKENS, WARPS * 32):
                starts[i] = blocks[order + min(first + i, count - 1)] // x_of * x_stride
            cuda.syncthreads()
        codes = matrix * matrix_bytes + tile * groups * size
        numbers = matrix * matrix_bytes + (tile * chunks * 32 + in_tile) * 16
        acc, total = cuda.local.array(SUMS, np.float32), cuda.local.array(SUMS, np.float32)
        for i in range(SUMS):
            acc[i], total[i] = F(0), F(0)
        stage(buffer, 0, x, first, starts, 0, x_stride, stride, pieces)
        copies_commit()
        n0, n1 = packed(weights, codes, in_tile, q)
        n2, n3 = packed(weights, codes, in_tile + 8, q)
        for chunk in range(chunks):
            if chunk + 1 < chunks:
                stage(buffer, (chunk + 1) % 2 * half, x, first, starts, (chunk + 1) * RECORD, x_stride, stride, pieces)
            copies_commit()
            wait_but_last()
            cuda.syncthreads()
            for group in range(8):
                a0, a2 = unpack(n0, n1, t0, t1, t2, t3)
                a1, a3 = unpack(n2, n3, t0, t1, t2, t3)
                after = min(chunk * 8 + group + 1, groups - 1)
                n0, n1 = packed(weights, codes + after * size, in_tile, q)
                n2, n3 = packed(weights, codes + after * size, in_tile + 8, q)
                at = numbers + chunk * 512 + group * 2
                upper, lower = half_to_float(load2(weights, scales + at)), half_to_float(load2(weights, scales + at + 128))
                upper_offset, lower_offset = upper, lower
                if shifted:
                    upper_offset, lower_offset = (
                        half_to_float(load2(weights, offsets + at)),
                        half_to_float(load2(weights, offsets + at + 128)),
                    )
                start = chunk % 2 * half + group * 8 + g * stride + q * 2
                own = chunk % 2 * half + 64 + group + q * 2 * stride
                for n in range(TILES):
                    if not grouped or first + n * 8 < count:
                        b0, b1 = shared8(buffer, start + n * 8 * stride)
                        c0, c1, c2, c3 = mma_s8(a0, a1, a2, a3, b0, b1, MAGIC, MAGIC, MAGIC, MAGIC)
                        token = own + n * 8 * stride
                        left, right = bits_float(shared4(buffer, token)), bits_float(shared4(buffer, token + stride))
                        acc[4 * n] = fma(bits_float(c0) - MAGIC_FLOAT, product(upper, left), acc[4 * n])
                        acc[4 * n + 1] = fma(bits_float(c1) - MAGIC_FLOAT, product(upper, right), acc[4 * n + 1])
                        acc[4 * n + 2] = fma(bits_float(c2) - MAGIC_FLOAT, product(lower, left), acc[4 * n + 2])
                        acc[4 * n + 3] = fma(bits_float(c3) - MAGIC_FLOAT, product(lower, right), acc[4 * n + 3])
                        if shifted:
                            left, right = bits_float(shared4(buffer, token + 8)), bits_float(shared4(buffer, token + stride + 8))
                            acc[4 * n] = fma(upper_offset, left, acc[4 * n])
                            acc[4 * n + 1] = fma(upper_offset, right, acc[4 * n + 1])
                            acc[4 * n + 2] = fma(lower_offset, left, acc[4 * n + 2])
                            acc[4 * n + 3] = fma(lower_offset, right, acc[4 * n + 3])
            cuda.syncthreads()
            if (chunk + 1) % per_segment == 0 or chunk + 1 == chunks:
                for i in range(SUMS):
                    total[i] += acc[i]
                    acc[i] = F(0)
        for n in range(TILES):
            for i in range(4):
                at, token = first_row + g + i // 2 * 8, first + n * 8 + q * 2 + i % 2
                if at < rows and token < count:
                    to = blocks[order + token] if grouped else token
                    finish(total[4 * n + i], bias, bias_at + at if bias_at >= 0 else -1, out, out_start + to * out_stride + at, add)

    return multiply


def launch(kind, place, blocks, grouped=False):
    """Kernel, grid and block for so many blocks of tokens. Blocks of the same rows follow each other: they find their weights in the L2
    cache."""
    return integers(kind, grouped), (blocks, -(-place.rows // (16 * WARPS))), 32 * WARPS
