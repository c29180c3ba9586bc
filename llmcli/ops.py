"""Contract 1: the operations a model is made of. This file names them and computes nothing.

Every backend implements them under these names; `plan.py` strings them together. Shapes: T tokens of this
step, R rows whose logits are wanted, H hidden size, V vocabulary, D head size, K columns in, N columns out.
All activations are float32 unless marked i32. "in place" means that `out` is the first input.

To add an operation: one row here, one function in `backends/reference/`, one kernel in each other backend.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """One kind of operation: operand names in order, weight names in order, parameter names, meaning."""

    name: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    params: tuple[str, ...]
    meaning: str


def _operation(name: str, inputs: str, weights: str, params: str, meaning: str) -> tuple[str, Operation]:
    return name, Operation(name, tuple(inputs.split()), tuple(weights.split()), tuple(params.split()), meaning)


# Weights in [brackets] may be missing (None in the op's weight tuple).
OPERATIONS: dict[str, Operation] = dict(
    [
        _operation("embed", "", "table", "", "out[t] = table[token[t]]  (token ids come with the step)"),
        _operation("position_add", "x", "table", "offset", "in place: x[t] += table[position[t] + offset]"),
        _operation(
            "norm",
            "x",
            "[weight] [bias]",
            "kind eps heads",
            "kind 'rms': x / sqrt(mean(x^2) + eps) * weight; kind 'layer': mean removed first, + bias (no weight: 1). "
            "heads > 1: x is that many segments of equal width, each normalised by itself with the same weight "
            "when the weight is one segment wide, else with its own part of it; may be in place",
        ),
        _operation("linear", "x", "matrix [bias]", "", "out[t] = matrix @ x[t] + bias; matrix is [N, K]"),
        _operation(
            "rope",
            "x",
            "",
            "heads head_size size interleaved frequencies factor",
            "in place: rotates the first `size` columns of each head by the angles position * frequencies[i], i < size / 2, "
            "rounded to float32 as in the models' training; "
            "pairs are (i, i + size/2), or (2i, 2i + 1) when interleaved; cos and sin are multiplied by factor",
        ),
        _operation("cache_write", "key value", "", "layer", "stores key [T, kv_heads*D] and value at (sequence, position)"),
        _operation(
            "attention",
            "query",
            "[sinks]",
            "layer heads kv_heads head_size scale window softcap slopes",
            "out[t, h] = softmax(scale * q.k + slope_h * (key position - position), softcap applied to scale * q.k) @ v "
            "over the sequence's keys at positions p - window < k <= p (window 0: all); sinks [heads] join the "
            "softmax as one more logit without a value; slopes: ALiBi, one per head, or empty",
        ),
        _operation("activation", "x", "", "kind", "one of ACTIVATIONS; may be in place"),
        _operation("multiply", "a b", "", "", "out = a * b; may be in place"),
        _operation("add", "a b", "", "", "out = a + b; may be in place"),
        _operation("scale", "x", "", "factor", "out = x * factor; may be in place"),
        _operation("scale_rows", "x factor", "", "", "in place: x[t] * factor[t], a factor of one column"),
        _operation("softcap", "x", "", "cap", "in place: cap * tanh(x / cap)"),
        _operation("clip", "x", "", "limit", "in place: min(max(x, -limit), limit)"),
        _operation(
            "route",
            "logits",
            "",
            "count chosen softmax normalise scale",
            "chooses the `chosen` largest of `count` router logits a token (ties: lower id); out (i32) the ids "
            "[T, chosen] and, as second output, their weights [T, chosen]. softmax 'before': over all logits, then "
            "divided by the sum of the chosen where normalise; 'after': over the chosen; times scale",
        ),
        _operation(
            "experts",
            "x ids weights",
            "up down [up_bias] [down_bias]",
            "count chosen activation gated size limit shift",
            "out[t] = sum over chosen e of weight * down[e] @ act(up[e] @ x[t]); gated: up is [gate; up] stacked, "
            "act(gate) * (up + shift); limit > 0: gate is at most limit, up between -limit and limit; "
            "only the chosen experts' weights are read; experts are summed in ascending id",
        ),
        _operation("select_rows", "x", "", "", "out[r] = x[row[r]] for the R rows whose logits are wanted"),
        _operation(
            "top",
            "logits",
            "",
            "",
            "statistics of each logits row: the 256 largest (ids i32, values), and log-sum-exp, entropy in nats",
        ),
    ]
)

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "quick_gelu")
"""x * sigmoid(x); x * normal distribution(x), by erf; its tanh approximation; max(x, 0); its square; 1 / (1 + e^-x);
x * sigmoid(1.702 x)."""

TOP = 256
"""How many of the largest logits `top` keeps for each row (fewer where the vocabulary is smaller)."""
