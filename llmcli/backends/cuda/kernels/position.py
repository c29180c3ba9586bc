"""x[t] += table[position[t] + offset], in place: learned positions. Bytes: x twice, a table row for each token."""

from __future__ import annotations

from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, kernel
from llmcli.backends.cuda.kernels.step import HEADER, MOST, POSITIONS

BLOCK = 256 if not SIMULATED else 32


@kernel
def add_positions(step, x, x_start, x_stride, table, columns, offset):
    """table: f32 [positions][columns]."""
    token = cuda.blockIdx.y
    column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if token < step[0] and column < columns:
        row = step[HEADER + POSITIONS * step[MOST] + token] + offset
        at = x_start + token * x_stride + column
        x[at] = x[at] + table[row * columns + column]


def position_add(most: int, columns: int):
    """(kernel, grid, block) for up to `most` tokens."""
    return add_positions, (-(-columns // BLOCK), most), BLOCK
