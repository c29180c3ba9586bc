"""Rotary positions, in place: pairs of columns are turned by position * frequency.

Angles are float32 products, as in the implementations that models are trained with (ops.py); their cosines and sines are
computed in float64 and rounded. A thread turns one pair of each of 4 heads: the float64 work is some 40 operations for them.
Bytes: x is read and written once.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import cosine_sine
from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, kernel, made, product
from llmcli.backends.cuda.kernels.step import HEADER, MOST, POSITIONS

F = np.float32
BLOCK = 128 if not SIMULATED else 32
EACH = 4
"""Heads of a thread."""


@made
def rows(interleaved):
    """pairs: the first columns of each head that are turned, by two; (i, i + pairs), or (2 i, 2 i + 1) where interleaved."""

    @kernel
    def rope_rows(step, x, x_start, x_stride, heads, head_size, pairs, frequencies, factor):
        """frequencies: f32 [pairs]."""
        token = cuda.blockIdx.y
        item = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        first = item // pairs * EACH
        if token >= step[0] or first >= heads:
            return
        pair = item % pairs
        angle = product(F(step[HEADER + POSITIONS * step[MOST] + token]), frequencies[pair])
        c, s = cosine_sine(np.float64(angle))
        cosine, sine = F(c * factor), F(s * factor)
        for head in range(first, min(first + EACH, heads)):
            low = x_start + token * x_stride + head * head_size + (2 * pair if interleaved else pair)
            high = low + (1 if interleaved else pairs)
            a, b = x[low], x[high]
            x[low] = product(a, cosine) - product(b, sine)
            x[high] = product(b, cosine) + product(a, sine)

    return rope_rows


KERNELS = {"half": rows(False), "interleaved": rows(True)}


def rope(interleaved: bool, most: int, heads: int, pairs: int):
    """(kernel, grid, block) for up to `most` tokens."""
    return KERNELS["interleaved" if interleaved else "half"], (-(-(-(-heads // EACH) * pairs) // BLOCK), most), BLOCK
