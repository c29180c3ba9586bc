"""out[r] = x[row r of those whose logits are wanted]. Bytes: each wanted row, read and written once."""

from __future__ import annotations

from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, kernel
from llmcli.backends.cuda.kernels.step import HEADER, MOST, OUTPUTS, ROWS_IN_STEP

BLOCK = 256 if not SIMULATED else 32


@kernel
def select(step, x, x_start, x_stride, out, out_start, out_stride, columns):
    row = cuda.blockIdx.y
    column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if row < step[ROWS_IN_STEP] and column < columns:
        token = step[HEADER + OUTPUTS * step[MOST] + row]
        out[out_start + row * out_stride + column] = x[x_start + token * x_stride + column]


def select_rows(most: int, columns: int):
    """(kernel, grid, block) for up to `most` wanted rows."""
    return select, (-(-columns // BLOCK), most), BLOCK
