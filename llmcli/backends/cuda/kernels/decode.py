"""out = x @ weights.T + bias for one or a few tokens, bounded by how fast weights can be read.

A lane is an output row; a warp reads 512 bytes at a time, 32 rows by a group. K is cut into at most SEGMENTS pieces of whole chunks,
a function of K alone: each is a warp's of the block, and their sums are added in ascending order. Within a piece groups ascend, one fma
each:
    sum = fma(float(exact sum of 32 products), weight scale * activation scale, sum), then fma(offset, activation sum, sum)
The prompt kernel (prompt.py) adds in the same order: same bits for one token and for many.

Bytes: each weight once (0.5625 a weight for int4, 1.0625 for int8), activations from the cache. 2 to 4 KB are under way
for each warp at any time. `routed` kernels take each row's matrix from `ids`, an expert for each choice of a token.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.codes import GROUP_BYTES, ROW
from llmcli.backends.cuda.kernels.platform import (
    bits_float,
    copies_commit,
    copies_wait_but,
    copy16,
    cuda,
    device,
    dp4a,
    fma,
    half_to_float,
    kernel,
    load4,
    load16,
    made,
    product,
    shared16,
)
from llmcli.backends.cuda.kernels.quantize import RECORD, SCALES, SUMS

SEGMENTS = 8
CHUNK = 8
RING = {"int4": 8, "int4_offset": 4, "int8": 4}
"""Groups of 512 or 1,024 bytes that a warp has under way: 32 KB for a block at most, so that one block alone keeps its multiprocessor
supplied, and with scales and sums all fits 48 KB."""
HEIGHTS = (1, 2, 4, 8)
"""Tokens that a kernel computes at once."""
F = np.float32


def span(chunks):
    """Chunks in a segment."""
    return -(-chunks // SEGMENTS)


def segments(chunks):
    return -(-chunks // span(chunks))


def packing(kind):
    """How codes lie: 'int4' or 'int8'."""
    return kind.removesuffix("_offset")


def _copies(kind):
    """How a lane's weights come to shared memory, RING groups ahead: each lane waits for what it copied itself, and the assembler cannot
    put copies off, as it does with loads, to save registers."""
    shifted, size, ring = kind.endswith("_offset"), GROUP_BYTES[packing(kind)], RING[kind]

    @device
    def copy_group(codes, to, weights, at, number):
        """Group `number` of those that begin at `at`."""
        copy16(codes, to + number % ring * (size // 4), weights, at + number * size)
        if size == 1024:
            copy16(codes, to + number % ring * (size // 4) + 128, weights, at + number * size + 512)

    @device
    def copy_scales(numbers, to, weights, scales, offsets):
        copy16(numbers, to, weights, scales)
        if shifted:
            copy16(numbers, to + 256, weights, offsets)

    return copy_group, copy_scales


def _group(kind, height):
    """Group `number` of a chunk, for this lane's row: adds to acc f32 [height] and starts the copy of another that takes its place."""
    shifted, size, ring = kind.endswith("_offset"), GROUP_BYTES[packing(kind)], RING[kind]
    unpack, wait, copy_group = ROW[packing(kind)], copies_wait_but(ring - 1), _copies(kind)[0]

    @device
    def add_group(acc, codes, own, t0, t1, t2, t3, scale_bits, offset_bits, x, record, x_stride, weights, at, more, number):
        wait()
        c0, c1, c2, c3, c4, c5, c6, c7 = unpack(codes, own + number % ring * (size // 4), t0, t1, t2, t3)
        scale = half_to_float(scale_bits & 0xFFFF)
        for m in range(height):
            source = record + m * x_stride
            x0, x1, x2, x3 = load16(x, source + number * 32)
            x4, x5, x6, x7 = load16(x, source + number * 32 + 16)
            exact = dp4a(c3, x3, dp4a(c2, x2, dp4a(c1, x1, dp4a(c0, x0, np.int32(0)))))
            exact = dp4a(c7, x7, dp4a(c6, x6, dp4a(c5, x5, dp4a(c4, x4, exact))))
            acc[m] = fma(F(exact), product(scale, bits_float(load4(x, source + SCALES + number * 4))), acc[m])
            if shifted:
                acc[m] = fma(half_to_float(offset_bits & 0xFFFF), bits_float(load4(x, source + SUMS + number * 4)), acc[m])
        if more or number + ring < 8:
            copy_group(codes, own, weights, at, number + ring)
        copies_commit()

    return add_group


@device
def finish(total, bias, bias_at, out, at, add):
    """Bias, addition and store of one result. bias_at: -1 without."""
    if bias_at >= 0:
        total += bias[bias_at]
    if add:
        total = out[at] + total
    out[at] = total


def finish_segments(height):
    """Adds the segments' sums, ascending, and stores them."""
    size = SEGMENTS * height * 32

    @device
    def merge(acc, warps, tile, rows, first, count, bias, bias_at, out, out_start, out_stride, add):
        parts = cuda.shared.array(size, np.float32)
        thread = cuda.threadIdx.x
        for m in range(height):
            parts[(thread // 32 * height + m) * 32 + thread % 32] = acc[m]
        cuda.syncthreads()
        for i in range(thread, height * 32, cuda.blockDim.x):
            total = F(0)
            for warp in range(warps):
                total += parts[warp * height * 32 + i]
            row, token = tile * 32 + i % 32, first + i // 32
            if row < rows and token < count:
                own = bias_at + row if bias_at >= 0 else -1
                finish(total, bias, own, out, out_start + token * out_stride + row, add)

    return merge


@made
def integers(kind, height, routed=False):
    """The kernel for `height` tokens of an integer kind. Grid (tiles of 32 rows, blocks of tokens), a warp for each segment.

    x: quantized rows (quantize.py) with room for whole blocks of tokens. matrix_bytes, x_of, ids: of routed kernels, where block y is a
    choice; its matrix is ids[y] and its row of x is y / x_of."""
    copy_group, copy_scales = _copies(kind)
    add_group, merge, wait = _group(kind, height), finish_segments(height), copies_wait_but(RING[kind] - 1)
    shifted, group_bytes, ring = kind.endswith("_offset"), GROUP_BYTES[packing(kind)], RING[kind]
    scale_words = 512 if shifted else 256  # of a warp: two chunks' scales, and offsets
    code_words, number_words = SEGMENTS * ring * group_bytes // 4, SEGMENTS * scale_words

    @kernel
    def multiply(
        step, which, each, weights, matrix_bytes, scales, offsets, t0, t1, t2, t3, rows, groups, per_segment,
        x, x_of, ids, ids_start, ids_stride, bias, bias_at, out, out_start, out_stride, add,
    ):  # fmt: skip
        codes = cuda.shared.array(code_words, np.int32, alignment=16)
        numbers = cuda.shared.array(number_words, np.int32, alignment=16)
        tile, first = cuda.blockIdx.x, cuda.blockIdx.y * height
        count = step[which] * each
        if first >= count:
            return
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        chunks = (groups + 7) // 8
        x_stride = chunks * RECORD
        x_row, matrix = first, 0
        if routed:
            x_row = first // x_of
            matrix = ids[ids_start + first // each * ids_stride + first % each]
            if bias_at >= 0:
                bias_at += matrix * rows
        base = matrix * matrix_bytes
        acc = cuda.local.array(height, np.float32)
        for m in range(height):
            acc[m] = F(0)
        begin, end = warp * per_segment, min((warp + 1) * per_segment, chunks)
        at = base + (tile * groups + begin * 8) * group_bytes + lane * 16
        scales += base + ((tile * chunks + begin) * 32 + lane) * 16
        offsets += base + ((tile * chunks + begin) * 32 + lane) * 16
        record = x_row * x_stride + begin * RECORD
        own, numbers_own = warp * ring * (group_bytes // 4) + lane * 4, warp * scale_words + lane * 4
        if begin < end:
            copy_scales(numbers, numbers_own + begin % 2 * 128, weights, scales, offsets)
        for ahead in range(ring):
            if begin < end:
                copy_group(codes, own, weights, at, ahead)
            copies_commit()
        for chunk in range(begin, end):
            more = chunk + 1 < end
            if more:
                copy_scales(numbers, numbers_own + (chunk + 1) % 2 * 128, weights, scales + 512, offsets + 512)
            wait()
            s0, s1, s2, s3 = shared16(numbers, numbers_own + chunk % 2 * 128)
            o0, o1, o2, o3 = s0, s1, s2, s3
            if shifted:
                o0, o1, o2, o3 = shared16(numbers, numbers_own + 256 + chunk % 2 * 128)
            add_group(acc, codes, own, t0, t1, t2, t3, s0, o0, x, record, x_stride, weights, at, more, 0)
            add_group(acc, codes, own, t0, t1, t2, t3, s0 >> 16, o0 >> 16, x, record, x_stride, weights, at, more, 1)
            add_group(acc, codes, own, t0, t1, t2, t3, s1, o1, x, record, x_stride, weights, at, more, 2)
            add_group(acc, codes, own, t0, t1, t2, t3, s1 >> 16, o1 >> 16, x, record, x_stride, weights, at, more, 3)
            add_group(acc, codes, own, t0, t1, t2, t3, s2, o2, x, record, x_stride, weights, at, more, 4)
            add_group(acc, codes, own, t0, t1, t2, t3, s2 >> 16, o2 >> 16, x, record, x_stride, weights, at, more, 5)
            add_group(acc, codes, own, t0, t1, t2, t3, s3, o3, x, record, x_stride, weights, at, more, 6)
            add_group(acc, codes, own, t0, t1, t2, t3, s3 >> 16, o3 >> 16, x, record, x_stride, weights, at, more, 7)
            at, scales, offsets, record = at + 8 * group_bytes, scales + 512, offsets + 512, record + RECORD
        merge(acc, cuda.blockDim.x // 32, tile, rows, first, count, bias, bias_at, out, out_start, out_stride, add)

    return multiply
