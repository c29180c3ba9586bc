"""Rotary positions."""

from __future__ import annotations

import numpy as np

from llmcli.backends.reference.step import Floats, Step


def rope(
    step: Step,
    x: Floats,
    *,
    heads: int,
    head_size: int,
    size: int,
    interleaved: bool,
    frequencies: tuple[float, ...],
    factor: float,
) -> Floats:
    """x [T, heads * head_size] with the first `size` columns of each head rotated. The angles are float32 because
    models are trained with such; their cosines and sines are exact."""
    angles = step.batch.positions.astype(np.float32)[:, None] * np.array(frequencies, np.float32)
    cos, sin = ((f(angles.astype(np.float64)) * factor).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    out = x.reshape(len(x), heads, head_size).copy()
    if interleaved:
        first, second = slice(0, size, 2), slice(1, size, 2)
    else:
        first, second = slice(0, size // 2), slice(size // 2, size)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out.reshape(x.shape)
