"""The reference's mixtures of experts against obvious Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmcli.backends.reference.experts import experts, route
from llmcli.backends.reference.linear import Matrix
from test_reference_ops import PLAIN, close, random


@pytest.mark.parametrize("softmax", ["before", "after"])
@pytest.mark.parametrize("normalise", [True, False])
def test_route(softmax: str, normalise: bool) -> None:
    logits = np.array([[0.0, 2.0, -1.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]], np.float32)
    ids, weights = route(logits, count=5, chosen=3, softmax=softmax, normalise=normalise, scale=2.0)
    assert ids.dtype == np.int32 and ids.tolist() == [[1, 3, 4], [0, 1, 2]]
    for row, chosen, found in zip(logits, ids, weights, strict=True):
        over = row if softmax == "before" else row[chosen]
        shares = [math.exp(row[e]) / sum(math.exp(x) for x in over) for e in chosen]
        if normalise:
            shares = [x / sum(shares) for x in shares]
        close(found, [2 * x for x in shares])


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_experts(gated: bool, biases: bool) -> None:
    count, hidden, size, limit, shift = 4, 6, 5, 0.8 if biases else 0.0, 0.5
    inner = 2 * size if gated else size
    x, up, down = random(3, hidden), random(count, inner, hidden, seed=1), random(count, hidden, size, seed=2)
    up_bias, down_bias = (random(count, inner, seed=3), random(count, hidden, seed=4)) if biases else (None, None)
    ids, weights = np.array([[2, 0], [3, 1], [1, 2]], np.int32), random(3, 2, seed=5)
    found = experts(
        x,
        ids,
        weights,
        [Matrix(m) for m in up],
        [Matrix(m) for m in down],
        up_bias,
        down_bias,
        count=count,
        chosen=2,
        activation="silu",
        gated=gated,
        size=size,
        limit=limit,
        shift=shift,
    )
    wanted = np.zeros((3, hidden))
    for t in range(3):
        for e, weight in zip(ids[t], weights[t], strict=True):
            h = up[e].astype(np.float64) @ x[t] + (up_bias[e] if up_bias is not None else 0)
            if limit:
                h = np.concatenate([np.minimum(h[:size], limit), np.clip(h[size:], -limit, limit)])
            act = [PLAIN["silu"](v) * (h[size + i] + shift if gated else 1) for i, v in enumerate(h[:size])]
            wanted[t] += weight * (down[e].astype(np.float64) @ act + (down_bias[e] if down_bias is not None else 0))
    close(found, wanted, 1e-5)
