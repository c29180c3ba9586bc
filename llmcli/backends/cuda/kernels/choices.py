"""Activations of choices to int8: as quantize.py, for a row of each of a token's chosen experts."""

from __future__ import annotations

from llmcli.backends.cuda.kernels.platform import cuda, kernel
from llmcli.backends.cuda.kernels.quantize import BLOCK, NOTHING, RECORD, quantize_group


@kernel
def quantize_choices(step, chosen, x, x_start, x_stride, columns, codes):
    """Rows 0 .. T * chosen of x to records. Grid (chunks, rows), 256 threads."""
    chunk, row = cuda.blockIdx.x, cuda.blockIdx.y
    if row >= step[0] * chosen:
        return
    group, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    column = chunk * BLOCK + cuda.threadIdx.x
    value = NOTHING
    if column < columns:
        value = x[x_start + row * x_stride + column]
    quantize_group(value, codes, (row * cuda.gridDim.x + chunk) * RECORD, group, lane)


def quantize(most, chosen, columns):
    """(kernel, grid, block) for up to `most` tokens."""
    return quantize_choices, (-(-columns // BLOCK), most * chosen), BLOCK
