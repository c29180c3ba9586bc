"""Norms over a token's columns, or over each head's."""

from __future__ import annotations

import numpy as np

from llmcli.backends.reference.step import Floats
from llmcli.errors import NumericalError


def norm(x: Floats, weight: Floats | None, bias: Floats | None = None, *, kind: str, eps: float, heads: int) -> Floats:
    """x [T, heads * W] -> the same shape. weight, bias: [W], shared by the heads, or [heads * W].

    Raises NumericalError where a sum of squares is not finite: NaN would vanish in int8 and come out as plausible text.
    """
    width = x.shape[1] // heads
    parts = x.reshape(len(x), heads, width)
    if kind == "layer":
        parts = parts - parts.mean(-1, keepdims=True)
    square = (parts * parts).mean(-1, keepdims=True)
    bad = ~np.isfinite(square).all((1, 2))
    if bad.any():
        raise NumericalError("NaN or infinity", f"token {int(bad.argmax())} of the step")
    out: Floats = parts / np.sqrt(square + np.float32(eps))
    if weight is not None:
        out = out * weight.reshape(-1, width)
    if bias is not None:
        out = out + bias.reshape(-1, width)
    return out.reshape(x.shape)
