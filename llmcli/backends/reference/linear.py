"""Matrices of any format, and the product with one.

Every token is multiplied by itself (one matrix-vector product each), so that its numbers cannot depend on how many
tokens are computed with it: BLAS sums in another order for a product of another shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcli.backends.reference.step import Floats
from llmcli.formats import format as formats
from llmcli.formats.format import GROUP, PackedTensor


@dataclass(frozen=True)
class Matrix:
    """values: f32 [N, K]. int8_activations: the format multiplies activations quantized in groups of 32."""

    values: Floats
    int8_activations: bool = False


def unpack(tensor: PackedTensor) -> list[Matrix]:
    """The matrices of a packed tensor: one for [N, K], E for [E, N, K]."""
    module = formats.get(tensor.format)
    rows, columns = tensor.shape[-2:]
    size = module.size(rows, columns)
    count = 1 if len(tensor.shape) == 2 else tensor.shape[0]
    parts = (tensor.data[i * size : (i + 1) * size] for i in range(count))
    return [Matrix(np.ascontiguousarray(module.unpack(part, rows, columns)), module.FORMAT.activations == "int8") for part in parts]


def linear(x: Floats, matrix: Matrix, bias: Floats | None = None) -> Floats:
    """x [T, K] -> [T, N]: matrix @ x[t] + bias."""
    if matrix.int8_activations:
        x = int8(x)
    out = np.stack([matrix.values @ row for row in x]) if len(x) else np.zeros((0, len(matrix.values)), np.float32)
    return out if bias is None else out + bias


def int8(x: Floats) -> Floats:
    """x [T, K] as the int8 formats see it: each group of 32 columns rounded to 127 steps of its largest magnitude."""
    tokens, columns = x.shape
    count = -(-columns // GROUP)
    groups: Floats = np.pad(x, ((0, 0), (0, -columns % GROUP))).reshape(tokens, count, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded: Floats = np.rint(groups * inverse) * (largest / np.float32(127))
    return rounded.reshape(tokens, count * GROUP)[:, :columns]
