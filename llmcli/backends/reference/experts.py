"""Mixtures of experts: choosing some for each token, and summing what they say."""

from __future__ import annotations

import numpy as np

from llmcli.backends.reference.elementwise import KINDS
from llmcli.backends.reference.linear import Matrix, linear
from llmcli.backends.reference.step import Floats, Ints


def _softmax(x: Floats) -> Floats:
    weights = np.exp(x - x.max(-1, keepdims=True))
    shares: Floats = weights / weights.sum(-1, keepdims=True)
    return shares


def route(logits: Floats, *, count: int, chosen: int, softmax: str, normalise: bool, scale: float) -> tuple[Ints, Floats]:
    """logits [T, count] -> ids i32 and weights f32 [T, chosen], likeliest first; of equal logits the lower id."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :chosen]
    if softmax == "before":
        weights = np.take_along_axis(_softmax(logits), ids, -1)
        if normalise:
            weights = weights / weights.sum(-1, keepdims=True)
    else:
        weights = _softmax(np.take_along_axis(logits, ids, -1))
    return ids.astype(np.int32), weights * np.float32(scale)


def experts(
    x: Floats,
    ids: Ints,
    weights: Floats,
    up: list[Matrix],
    down: list[Matrix],
    up_bias: Floats | None = None,
    down_bias: Floats | None = None,
    *,
    count: int,
    chosen: int,
    activation: str,
    gated: bool,
    size: int,
    limit: float,
    shift: float,
) -> Floats:
    """x [T, H] -> [T, H]; biases [E, N]. A token's experts are summed in ascending id."""
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for choice in np.argsort(ids[t]):
            e = ids[t, choice]
            inner = linear(row[None], up[e], None if up_bias is None else up_bias[e])
            first, second = inner[:, :size], inner[:, size:]
            if limit:
                first, second = np.minimum(first, np.float32(limit)), np.clip(second, np.float32(-limit), np.float32(limit))
            inner = KINDS[activation](first)
            if gated:
                inner = inner * (second + np.float32(shift))
            out[t] += weights[t, choice] * linear(inner, down[e], None if down_bias is None else down_bias[e])[0]
    return out
