"""Operations on numbers one by one: out[t] = f(a[t], b[t], value). out may be a or b.

Bytes: every operand is read, the result is written, once; nothing else, so a launch costs its latency for one token and the
memory's bandwidth for many. To add one: a function of three floats here and its name in FUNCTIONS. The fused ones are an
activation and the multiplication that follows it. Arithmetic: the CPU's, the same bits.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import exp, normal_distribution, sigmoid, tanh
from llmcli.backends.cuda.kernels.platform import SIMULATED, WARP, cuda, device, fma, kernel, made, product
from llmcli.backends.cuda.kernels.quantize import RECORD, launch, quantize_group

F = np.float32
BLOCK = 256 if not SIMULATED else 32
EACH = 4
"""Numbers that a thread computes: so many loads are under way at once."""
ZERO, ONE = F(0), F(1)
GELU_SLOPE, GELU_CUBE, QUICK = F(2 * (2 / np.pi) ** 0.5), F(0.044715), F(1.702)


@device
def silu(a, b, value):
    return a / (ONE + exp(-a))


@device
def gelu(a, b, value):
    return product(a, normal_distribution(a))


@device
def gelu_tanh(a, b, value):
    """a * (1 + tanh(u)) / 2, which is a * sigmoid(2 u)."""
    return a / (ONE + exp(-product(GELU_SLOPE, fma(product(GELU_CUBE, a), product(a, a), a))))


@device
def quick_gelu(a, b, value):
    return a / (ONE + exp(-product(QUICK, a)))


@device
def logistic(a, b, value):
    return sigmoid(a)


@device
def relu(a, b, value):
    return ZERO if a < ZERO else a


@device
def relu2(a, b, value):
    positive = ZERO if a < ZERO else a
    return product(positive, positive)


@device
def scale(a, b, value):
    return product(a, value)


@device
def softcap(a, b, value):
    return product(value, tanh(a / value))


@device
def clip(a, b, value):
    low = -value if a < -value else a
    return value if low > value else low


@device
def add(a, b, value):
    return a + b


@device
def multiply(a, b, value):
    return product(a, b)


@made
def then_multiply(activation):
    """activation(a) * b: a gated block's inner product."""

    @device
    def fused(a, b, value):
        return product(activation(a, b, value), b)

    return fused


@made
def rows(function):
    """The kernel that applies `function` along rows. outputs: 0 for T rows, 1 for R."""

    @kernel
    def elementwise(step, outputs, a, a_start, a_stride, b, b_start, b_stride, out, out_start, out_stride, columns, value):
        row = cuda.blockIdx.y
        if row < step[outputs]:
            at = cuda.blockIdx.x * (BLOCK * EACH) + cuda.threadIdx.x
            for i in range(EACH):
                column = at + i * BLOCK
                if column < columns:
                    x, y = a[a_start + row * a_stride + column], b[b_start + row * b_stride + column]
                    out[out_start + row * out_stride + column] = function(x, y, F(value))

    return elementwise


@made
def quantized_rows(function):
    """The same, and the result to records (quantize.py); `out` gets it only where `kept`. A block is a record."""

    @kernel
    def elementwise_quantize(
        step, outputs, a, a_start, a_stride, b, b_start, b_stride, out, out_start, out_stride, columns, value, kept, codes
    ):
        row, chunk, thread = cuda.blockIdx.y, cuda.blockIdx.x, cuda.threadIdx.x
        if row < step[outputs]:
            column, result = chunk * cuda.blockDim.x + thread, ZERO
            if column < columns:
                result = function(a[a_start + row * a_stride + column], b[b_start + row * b_stride + column], F(value))
                if kept:
                    out[out_start + row * out_stride + column] = result
            quantize_group(result, codes, (row * cuda.gridDim.x + chunk) * RECORD, thread // WARP, thread % WARP)

    return elementwise_quantize


@kernel
def scale_rows(step, outputs, a, a_start, a_stride, b, b_start, b_stride, out, out_start, out_stride, columns, value):
    """out[t] = a[t] * b[t], b being one column wide."""
    row = cuda.blockIdx.y
    if row < step[outputs]:
        factor = b[b_start + row * b_stride]
        at = cuda.blockIdx.x * (BLOCK * EACH) + cuda.threadIdx.x
        for i in range(EACH):
            column = at + i * BLOCK
            if column < columns:
                out[out_start + row * out_stride + column] = product(a[a_start + row * a_stride + column], factor)


ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
    "sigmoid": logistic,
    "quick_gelu": quick_gelu,
}
"""ops.ACTIVATIONS."""
FUNCTIONS = {
    "add": add,
    "multiply": multiply,
    "scale": scale,
    "softcap": softcap,
    "clip": clip,
    **ACTIVATIONS,
    **{f"{name}_multiply": then_multiply(function) for name, function in ACTIVATIONS.items()},
}
KERNELS = {"scale_rows": scale_rows, **{name: rows(function) for name, function in FUNCTIONS.items()}}
"""Arguments of each: see `rows`. Those of one operand get it as b too, and do not look at it."""


def elementwise(name: str, most: int, columns: int):
    """(kernel, grid, block) for up to `most` rows."""
    return KERNELS[name], (-(-columns // (BLOCK * EACH)), most), BLOCK


def elementwise_quantize(name: str, most: int, columns: int):
    """Likewise, for what is quantized."""
    _, grid, block = launch(most, columns)
    return quantized_rows(FUNCTIONS[name]), grid, block
