"""Where attention looks: the weights of every head, computed again from what a step leaves behind.

Kernels never hold these weights: they go over the cache once, block by block (docs/architecture.md). So a plan with the tap
`attention` keeps the queries, the KV cache has the keys, and here the softmax is done once more in NumPy, in the order in which it
is written in papers. The numbers agree with those inside the kernels within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcli.engine import MOST_TOKENS
from llmcli.errors import UsageError
from llmcli.past import Past, check
from llmcli.plan import Op, Plan

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """What some tokens, one after the other, look at in one head."""

    layer: int
    head: int
    first: int
    """Position of the first of these tokens."""
    weights: Floats
    """[T, first + T]: row i is how the token at position first + i spreads over those up to it, behind which there are zeros. A row
    sums to 1; to less where the head has a sink, which takes the rest."""


def attention(past: Past, ids: Sequence[int], layers: Sequence[int]) -> Iterator[Part]:
    """The weights of these layers when ids are read: of one step of the text after the other all layers, of each all heads. `past`
    holds the ids afterwards; its engine has the tap `attention`.

    Raises UsageError for a layer that the model does not have, InputError, ContextOverflow, NumericalError.
    """
    check(past.engine, ids)
    ops = [_op(past.engine.plan, layer) for layer in layers]
    past.cut(0)  # the queries of what was read before are gone
    for first in range(0, len(ids), MOST_TOKENS):
        result = past.compute(ids[first : first + MOST_TOKENS], "none")
        for layer, op in zip(layers, ops, strict=True):
            keys, queries, sinks = past.keys(layer), result.taps[f"queries.{layer}"], past.engine.sinks.get(layer)
            for head in range(_heads(op)):
                yield Part(layer, head, first, weights(op, head, queries, keys, sinks))


class Matrix:
    """The weights [T, T] of a whole text in one head of a layer, or the mean of the layer's heads (None), put together of parts."""

    def __init__(self, plan: Plan, tokens: int, layer: int, head: int | None) -> None:
        self._layer, self._head, self._sum = layer, head, np.zeros((tokens, tokens), np.float32)
        self._share = np.float32(1 if head is not None else 1 / heads(plan, layer))

    def add(self, part: Part) -> None:
        """Parts of other layers and heads are left out."""
        if part.layer == self._layer and self._head in (None, part.head):
            count, positions = part.weights.shape
            self._sum[part.first : part.first + count, :positions] += self._share * part.weights

    def rows(self) -> list[list[float]]:
        """Row i: how token i spreads over tokens 0 to i."""
        return [row[: i + 1].tolist() for i, row in enumerate(self._sum)]


def weights(op: Op, head: int, queries: Floats, keys: Floats, sinks: Floats | None = None) -> Floats:
    """The weights [T, P] of one head for T tokens, the last of P positions.

    op: an `attention` of the plan; queries [T, heads * D]; keys [kv_heads, P, D]; sinks [heads], where the layer has some.
    """
    params, heads = op.params, _heads(op)
    size = queries.shape[1] // heads
    own = keys[head // (heads // len(keys))]
    scores = queries[:, head * size : (head + 1) * size] @ own.T * _number(op, "scale")
    if cap := _number(op, "softcap"):
        scores = cap * np.tanh(scores / cap)
    count, positions = scores.shape
    ahead = np.arange(positions) - np.arange(positions - count, positions)[:, None]  # of the key, so never positive where it is seen
    if isinstance(slopes := params["slopes"], tuple) and slopes:
        scores = scores + np.float32(slopes[head]) * ahead.astype(np.float32)
    seen = ahead <= 0
    if window := int(_number(op, "window")):
        seen &= ahead > -window
    scores = np.where(seen, scores, np.float32(-np.inf))
    sink = np.float32(-np.inf) if sinks is None else sinks[head]
    highest = np.maximum(scores.max(1, keepdims=True), sink)
    shares = np.exp(scores - highest)
    found: Floats = shares / (shares.sum(1, keepdims=True) + np.exp(sink - highest))
    return found


def heads(plan: Plan, layer: int) -> int:
    """How many heads a layer has. Raises UsageError for a layer that the model does not have."""
    return _heads(_op(plan, layer))


def _op(plan: Plan, layer: int) -> Op:
    count = len(plan.cache)
    if not 0 <= layer < count:
        raise UsageError(f"layer {layer}", f"the model has {count}, from 0 to {count - 1}", "Change --layer")
    return next(op for op in plan.ops if op.kind == "attention" and op.params["layer"] == layer)


def _heads(op: Op) -> int:
    return int(_number(op, "heads"))


def _number(op: Op, name: str) -> np.float32:
    """A parameter that is a number."""
    value = op.params[name]
    assert isinstance(value, int | float)
    return np.float32(value)
