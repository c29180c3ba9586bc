"""What an operation must read and compute at least: bytes and arithmetic, from shapes and formats alone.

Weights and the KV cache are counted as read once a step, activations not at all: they stay in the caches. Arithmetic is that of
matrix products and attention, where a multiplication and an addition are two operations; all else is small beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.kv import BLOCK, CODES, KVCache
from llmcli.plan import Op, Plan


@dataclass(frozen=True)
class Cost:
    """bytes: of weights and of the KV cache; int8, f32, int16: operations on integers of 8 bits, on floats, on integers of 16 bits."""

    bytes: float = 0
    int8: float = 0
    f32: float = 0
    int16: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.int8 + other.int8, self.f32 + other.f32, self.int16 + other.int16)

    def __truediv__(self, number: float) -> Cost:
        return Cost(self.bytes / number, self.int8 / number, self.f32 / number, self.int16 / number)


@dataclass(frozen=True)
class Step:
    """Tokens at the positions start .. start + tokens of one text; logits of `outputs` of them."""

    start: int
    tokens: int
    outputs: int


class Costs:
    """The costs of a model's operations; weights: the packed ones; cache: what attention reads."""

    def __init__(self, plan: Plan, weights: Mapping[str, PackedTensor], cache: KVCache) -> None:
        self.plan, self.weights, self.cache = plan, weights, cache

    def step(self, step: Step) -> Cost:
        """All operations of a step."""
        return sum((self.of(op, step) for op in self.plan.ops), Cost())

    def of(self, op: Op, step: Step) -> Cost:
        """One operation, of the plan or as a backend has fused it."""
        match op.kind:
            case "linear":
                return self._linear(op, step)
            case "embed":
                table = self.weights[str(op.weights[0])]
                return Cost(len(table.data) / table.shape[0] * step.tokens)
            case "experts":
                return self._experts(op, step, op.weights[:2])
            case "experts_up":
                return self._experts(op, step, op.weights[:1])
            case "experts_down":
                return self._experts(op, step, op.weights[1:2])
            case "attention":
                return self._attention(op, step)
            case "cache_write":
                return Cost(step.tokens * self._position_bytes(op.integer("layer")))
        return Cost()

    def _linear(self, op: Op, step: Step) -> Cost:
        matrix = self.weights[str(op.weights[0])]
        rows = step.outputs if self.plan.buffers[op.out[0].buffer].rows == "outputs" else step.tokens
        return self._products(matrix, 2 * matrix.shape[0] * matrix.shape[1] * rows, len(matrix.data) if rows else 0)

    def _experts(self, op: Op, step: Step, matrices: tuple[str | None, ...]) -> Cost:
        """Bytes: of the experts that so many tokens choose if each choice is equally likely."""
        count, chosen = op.integer("count"), op.integer("chosen")
        met = 1 - (1 - chosen / count) ** step.tokens
        total = Cost()
        for name in matrices:
            tensor = self.weights[str(name)]
            total += self._products(tensor, 2 * chosen * tensor.shape[1] * tensor.shape[2] * step.tokens, len(tensor.data) * met)
        return total

    def _products(self, matrix: PackedTensor, operations: float, size: float) -> Cost:
        integers = formats.get(matrix.format).FORMAT.activations == "int8"
        return Cost(size, int8=operations) if integers else Cost(size, f32=operations)

    def _attention(self, op: Op, step: Step) -> Cost:
        window = op.integer("window") or self.plan.context
        keys = np.minimum(np.arange(step.start, step.start + step.tokens) + 1, window)
        read = min(step.start + step.tokens, window + step.tokens - 1)
        operations = 4 * op.integer("heads") * op.integer("head_size") * float(keys.sum())
        size = read * self._position_bytes(op.integer("layer"))
        return Cost(size, int16=operations) if self.cache.dtype in CODES else Cost(size, f32=operations)

    def _position_bytes(self, layer: int) -> float:
        """Bytes that a layer keeps of one position."""
        shape = self.cache.layers[layer]
        return shape.kv_heads * self.cache.head_bytes(shape) / BLOCK
