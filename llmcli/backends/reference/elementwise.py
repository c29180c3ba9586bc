"""Operations on each number by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from llmcli.backends.reference.step import Floats

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Floats) -> Floats:
    out: Floats = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)
    return out


def _gelu(x: Floats) -> Floats:
    erf: Floats = _erf(x * np.float32(math.sqrt(0.5))).astype(np.float32)
    return np.float32(0.5) * x * (np.float32(1) + erf)


def _gelu_tanh(x: Floats) -> Floats:
    out: Floats = np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)))
    return out


KINDS: dict[str, Callable[[Floats], Floats]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": _sigmoid,
    "quick_gelu": lambda x: x * _sigmoid(np.float32(1.702) * x),
}


def activation(x: Floats, *, kind: str) -> Floats:
    return KINDS[kind](x)


def multiply(a: Floats, b: Floats) -> Floats:
    return a * b


def add(a: Floats, b: Floats) -> Floats:
    return a + b


def scale(x: Floats, *, factor: float) -> Floats:
    return x * np.float32(factor)


def scale_rows(x: Floats, factor: Floats) -> Floats:
    return x * factor


def softcap(x: Floats, *, cap: float) -> Floats:
    out: Floats = np.float32(cap) * np.tanh(x / np.float32(cap))
    return out


def clip(x: Floats, *, limit: float) -> Floats:
    return np.clip(x, np.float32(-limit), np.float32(limit))
