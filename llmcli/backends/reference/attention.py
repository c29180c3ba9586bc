"""Attention, and the cache that it reads (kv.py has the layout)."""

from __future__ import annotations

import numpy as np

from llmcli.backends.reference.step import Floats, Step
from llmcli.errors import NumericalError
from llmcli.kv import BLOCK, KVCache, Sequence

MOST = {"f32": np.finfo(np.float32).max, "f16": np.finfo(np.float16).max, "int16": 1e18, "int8": 1e18}
"""What magnitudes of keys and values each type of cache takes."""


def cache_write(step: Step, key: Floats, value: Floats, *, layer: int) -> None:
    """Stores key and value [T, kv_heads * D] at each token's (sequence, position). Raises NumericalError for what
    the cache's type cannot hold."""
    shape = (len(key), step.cache.layers[layer].kv_heads, step.cache.layers[layer].head_size)
    most = MOST[step.cache.dtype]
    for name, x in (("key", key), ("value", value)):
        bad = ~(np.abs(x) <= most).all(1)
        if bad.any():
            raise NumericalError(f"a {name} beyond {most:g}", f"token {int(bad.argmax())} of the step", "Use --kv f32")
    batch = step.batch
    for owner, position, k, v in zip(batch.owners, batch.positions, key.reshape(shape), value.reshape(shape), strict=True):
        block, within = batch.sequences[owner].blocks[position // BLOCK], position % BLOCK
        step.cache.write(layer, block, within, k, v)


def past(cache: KVCache, sequence: Sequence, layer: int) -> tuple[Floats, Floats]:
    """All keys and values of a sequence's blocks: f32 [kv_heads, positions, D] each."""
    keys, values = zip(*(cache.read(layer, block) for block in sequence.blocks), strict=True)
    return np.concatenate(keys, 1), np.concatenate(values, 1)


def attention(
    step: Step,
    query: Floats,
    sinks: Floats | None = None,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    scale: float,
    window: int,
    softcap: float,
    slopes: tuple[float, ...],
) -> Floats:
    """query [T, heads * D] -> [T, heads * D]. Head h reads keys and values of head h // (heads / kv_heads)."""
    batch = step.batch
    pasts = [past(step.cache, sequence, layer) for sequence in batch.sequences]
    slope = np.array(slopes, np.float32).reshape(kv_heads, -1, 1) if slopes else np.float32(0)
    out = np.empty_like(query)
    for t, (owner, position) in enumerate(zip(batch.owners, batch.positions, strict=True)):
        first = max(0, position + 1 - window) if window else 0
        keys, values = (x[:, first : position + 1] for x in pasts[owner])
        q = query[t].reshape(kv_heads, heads // kv_heads, head_size)
        scores = np.matmul(q, keys.swapaxes(1, 2)) * np.float32(scale)
        if softcap:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        scores = scores + slope * (np.arange(first, position + 1) - position).astype(np.float32)
        out[t] = np.matmul(softmax(scores, sinks), values).reshape(-1)
    return out


def softmax(scores: Floats, sinks: Floats | None) -> Floats:
    """scores [kv_heads, heads a kv head, keys] -> the share of each key; a sink takes its own, so that they sum to less than 1."""
    sink = np.full(scores.shape[:2] + (1,), -np.inf, np.float32) if sinks is None else sinks.reshape(*scores.shape[:2], 1)
    highest = np.maximum(scores.max(-1, keepdims=True), sink)
    weights = np.exp(scores - highest)
    shares: Floats = weights / (weights.sum(-1, keepdims=True) + np.exp(sink - highest))
    return shares
