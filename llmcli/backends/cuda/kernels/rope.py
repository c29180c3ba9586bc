"""Rotary positions, in place: pairs of columns are turned by position * frequency.

Angles are float32 products, as in the implementations that models are trained with (ops.py); their cosines and sines are
computed in float64 and rounded. A thread turns one pair of each of 4 heads: the float64 work is some 40 operations for them.
Bytes: x is read and written once.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import cosine_sine
from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, device, kernel, made, product
from llmcli.backends.cuda.kernels.step import HEADER, MOST, POSITIONS

F = np.float32
BLOCK = 128 if not SIMULATED else 32
EACH = 4
"""Heads of a thread."""


def turner(interleaved):
    """The device function that turns one pair of columns in each of the heads first .. end - 1, which are at most EACH."""

    @device
    def turn(step, token, x, row, first, end, head_size, pair, pairs, frequencies, factor):
        """row: where the token's heads begin in x; frequencies: f32 [pairs]."""
        angle = product(F(step[HEADER + POSITIONS * step[MOST] + token]), frequencies[pair])
        c, s = cosine_sine(np.float64(angle))
        cosine, sine = F(c * factor), F(s * factor)
        start, to_second = row + first * head_size + (2 * pair if interleaved else pair), 1 if interleaved else pairs
        a, b = cuda.local.array(EACH, np.float32), cuda.local.array(EACH, np.float32)
        for i in range(EACH):  # all loads are under way before the first store, which they might not cross
            if first + i < end:
                a[i], b[i] = x[start + i * head_size], x[start + i * head_size + to_second]
        for i in range(EACH):
            if first + i < end:
                x[start + i * head_size] = product(a[i], cosine) - product(b[i], sine)
                x[start + i * head_size + to_second] = product(b[i], cosine) + product(a[i], sine)

    return turn


@made
def rows(interleaved):
    """pairs: the first columns of each head that are turned, by two; (i, i + pairs), or (2 i, 2 i + 1) where interleaved."""
    turn = turner(interleaved)

    @kernel
    def rope_rows(step, x, x_start, x_stride, heads, head_size, pairs, frequencies, factor):
        token = cuda.blockIdx.y
        item = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        first, pair = item // pairs * EACH, item % pairs
        if token < step[0] and first < heads:
            turn(step, token, x, x_start + token * x_stride, first, heads, head_size, pair, pairs, frequencies, factor)

    return rope_rows


KERNELS = {"half": rows(False), "interleaved": rows(True)}


def rope(interleaved: bool, most: int, heads: int, pairs: int):
    """(kernel, grid, block) for up to `most` tokens."""
    return KERNELS["interleaved" if interleaved else "half"], (-(-(-(-heads // EACH) * pairs) // BLOCK), most), BLOCK
