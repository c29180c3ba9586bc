"""Numbers as s16 codes with a scale, for attention's integer products."""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.vectors import absolute, fma, larger, largest, load_first, splat, total

F = np.float32
CODES = F(31744)
"""The length of a vector of codes, or the sum of weights: products of two such vectors stay below 2^31."""
LEAST = F(2.0**-80)
"""Lengths and sums below it count as 0: their inverses would leave float32."""


@inline
def sizes(x, n):
    """Of n floats: the root of the sum of their squares, and the largest of them without its sign."""
    squares, most = splat(F(0)), splat(F(0))
    for at in range(0, n, 16):
        v = load_first(x + at * 4, n - at)
        squares, most = fma(v, v, squares), larger(absolute(v), most)
    return F(math.sqrt(total(squares))), largest(most)


@inline
def length(x, n):
    return sizes(x, n)[0]


@inline
def factor(largest_code, size):
    """What turns `size` into a code; 0 for a size that is as good as nothing."""
    return largest_code / size if size > LEAST else F(0)
