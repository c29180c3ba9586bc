"""Models on the cuda backend, simulated or real: what both kinds of tests compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arch_models import ARCHS, Model, opened
from llmcli.backends import backend
from llmcli.backends.backend import Batch
from llmcli.kv import KVCache
from llmcli.offload import runner
from llmcli.offload.place import Share

Floats = npt.NDArray[np.float32]


def golden(variant: str) -> tuple[npt.NDArray[np.int32], Floats]:
    """ids [T] and the original's logits [T, V]."""
    with np.load(ARCHS / variant / "golden.npz") as data:
        return data["ids"], data["logits"]


@contextmanager
def placed(model: Model, *shares: Share, most_tokens: int = 256) -> Iterator[Model]:
    """The same weights with layers on these devices, and a cache of their own."""
    cache = KVCache(model.cache.layers, model.cache.blocks + 2, model.cache.dtype)
    if len(shares) == 1 and shares[0].device.startswith("cuda"):
        module = backend.get("cuda")
        backend.check(module, model.plan, model.weights)
        made: backend.Runner = module.load(model.plan, model.weights, cache, 0, most_tokens)
    else:
        made = runner.load(model.plan, model.weights, cache, shares, 1, most_tokens)
    try:
        yield replace(model, cache=cache, runner=made)
    finally:
        made.close()


def steps(model: Model, ids: npt.NDArray[np.int32], prompt: int) -> Floats:
    """[T, V] logits: the first `prompt` tokens in one step, the others one by one."""
    text = model.cache.sequence()
    parts = [model.runner.run(Batch.of(text, ids[:prompt], "all")).logits.copy()]
    parts += [model.runner.run(Batch.of(text, ids[at : at + 1])).logits.copy() for at in range(prompt, len(ids))]
    text.close()
    return np.concatenate(parts)


def apart(found: Floats, expected: Floats) -> float:
    """How far log-probabilities are apart at most."""
    wide = [x.astype(np.float64) - x.max(-1, keepdims=True) for x in (found, expected)]
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in wide)
    return float(np.abs(a - b).max())


__all__ = ["ARCHS", "Batch", "Model", "Path", "Share", "apart", "golden", "opened", "placed", "steps"]
