"""Random weights for a plan, made directly in their packed form: models of any size in seconds, to measure speed with.

Matrices are like normal ones with variance 1 / K, so that activations keep their size through any number of layers. The numbers are
drawn once and repeated: what a product takes does not depend on them, as long as they are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.formats import format as formats
from llmcli.formats.format import Bytes, PackedTensor, aligned, padded
from llmcli.plan import Weight
from llmcli.weights.writer import ALWAYS, FORMATS

DRAWN = (1 << 20) - 3
"""Numbers drawn. It shares no factor with the sizes of rows, so that neighbouring rows differ."""
PEAK = 2.1
"""The largest of 32 normal numbers is about so many standard deviations: what a scale is made from."""
FLOAT = "bf16"
"""The format of matrices that are not quantized."""


def format_of(weight: Weight, quantization: str) -> str:
    """The format in which a weight of this kind is stored."""
    return ALWAYS.get(weight.kind) or FORMATS[quantization].get(weight.kind) or FLOAT


def size_of(weights: Mapping[str, Weight], quantization: str) -> int:
    """Bytes of all weights."""
    return sum(_size(weight, format_of(weight, quantization)) for weight in weights.values())


def tensors(weights: Mapping[str, Weight], quantization: str, seed: int = 0) -> dict[str, PackedTensor]:
    """A random tensor for each weight of a plan. quantization: 'int4', 'int8' or 'none'."""
    source = _Source(seed)
    return {name: source.tensor(weight, format_of(weight, quantization)) for name, weight in weights.items()}


class _Source:
    def __init__(self, seed: int) -> None:
        self._normal = np.random.default_rng(seed).standard_normal(DRAWN, np.float32)
        self._codes: dict[str, Bytes] = {}

    def tensor(self, weight: Weight, format: str) -> PackedTensor:
        data = aligned(_size(weight, format))
        data[:] = 0
        if format == "vector":
            values = data.view(np.float32)[: math.prod(weight.shape)]
            if weight.kind == "table":
                _repeat(values, self._normal * np.float32(weight.shape[-1] ** -0.5))
            else:  # norms multiply: they are around 1; biases add: they are small
                _repeat(values, self._normal * np.float32(0.1) + np.float32(not weight.name.endswith("_bias")))
        else:
            count = math.prod(weight.shape[:-2])
            share = len(data) // count
            for number in range(count):
                self._matrix(data[number * share : (number + 1) * share], format, *weight.shape[-2:])
        return PackedTensor(format, weight.shape, data)

    def _matrix(self, data: Bytes, format: str, rows: int, columns: int) -> None:
        module, deviation = formats.get(format), np.float32(columns**-0.5)
        sections = module.sections(rows, columns)
        codes = data[: sections[0]]
        if len(sections) == 1:
            values = module.pack((self._normal[: DRAWN // 16 * 16] * deviation).reshape(16, -1))
            _repeat(codes, values)
            return
        _repeat(codes, self._grouped(module, format))
        scales = data[sections[0] : sum(sections)].view(np.float16)
        largest = max(map(abs, module.FORMAT.codes), default=127)
        _repeat(scales, ((1 + self._normal.clip(-3, 3) / 16) * deviation * np.float32(PEAK / largest)).astype(np.float16))

    def _grouped(self, module: formats.FormatModule, format: str) -> Bytes:
        """Packed codes of normal numbers."""
        if format not in self._codes:
            values = self._normal[: DRAWN // 512 * 512].reshape(16, -1)
            self._codes[format] = module.pack(values)[: module.sections(*values.shape)[0]]
        return self._codes[format]


def _size(weight: Weight, format: str) -> int:
    if format == "vector":
        return padded(4 * math.prod(weight.shape), 64)
    return math.prod(weight.shape[:-2]) * formats.get(format).size(*weight.shape[-2:])


def _repeat(out: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Fills `out` with the values, over and over."""
    whole = len(out) // len(values)
    out[: whole * len(values)].reshape(whole, len(values))[...] = values
    out[whole * len(values) :] = values[: len(out) - whole * len(values)]
