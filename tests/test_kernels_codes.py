"""Attention over a KV cache of codes, and writing it: as it is defined, and bit for bit against itself."""

from __future__ import annotations

import numpy as np
import pytest

from attention_calls import LAYER, LENGTHS, Array, F, Shape, Texts, attend, check_bits, expected, last_tokens, queries, write
from kernel_calls import kernel, only_x86, pass_as
from llmcli.backends.cpu import target
from llmcli.kv import BLOCK, CODES, KVCache


def expected_of_codes(texts: Texts, owner: int, position: int, query: Array) -> Array:
    """One token's output [heads, D] over a cache of codes in float64, but for queries and a block's weights rounded to codes."""
    shape, most, out = texts.shape, CODES["int16"], np.zeros(query.shape)
    first = max(0, position + 1 - shape.window) if shape.window else 0
    for h in range(shape.heads):
        sink = -np.inf if shape.sink_logits is None else float(shape.sink_logits[h])
        q = query[h].astype(float)
        q = np.rint(q * (most / np.linalg.norm(q))) * (np.linalg.norm(q) / most)
        scores = texts.keys[owner][:, h // shape.group].astype(float) @ q * shape.scale
        scores = shape.softcap * np.tanh(scores / shape.softcap) if shape.softcap else scores
        if shape.slopes is not None:
            scores += shape.slopes[h] * (np.arange(len(scores)) - position)
        top = max(sink, scores[first : position + 1].max())
        whole = np.exp(sink - top)
        for block, number in enumerate(texts.sequences[owner].blocks):
            start, end = max(first, block * BLOCK), min(position + 1, (block + 1) * BLOCK)
            if start < end:
                weights = np.exp(scores[start:end] - top)
                scales = texts.cache.scales(LAYER, number)[h // shape.group, 1, start - block * BLOCK : end - block * BLOCK].astype(float)
                factor = most / max((weights * scales).sum(), 1e-300)
                codes = np.rint(weights * scales * factor)
                out[h] += codes / (factor * scales) @ texts.values[owner][start:end, h // shape.group].astype(float)
                whole += weights.sum()
        out[h] /= whole
    return out


OF_CODES = {
    "grouped": Shape(dtype="int16"),
    "all at once": Shape(window=40, softcap=3.0, alibi=True, sinks=True, dtype="int16"),
    "window, odd head": Shape(heads=4, kv_heads=2, size=21, window=300, dtype="int16"),
    "8 bits": Shape(dtype="int8"),
}


@pytest.mark.parametrize("shape", OF_CODES.values(), ids=list(OF_CODES))
def test_attention_over_codes(shape: Shape) -> None:
    """As it is defined, and as close to plain softmax as 15 bits of queries and of weights are. The first rounds few codes otherwise."""
    texts = Texts.of(shape, LENGTHS)
    owners, positions = last_tokens(LENGTHS)
    query = queries(shape, len(owners))
    out = attend(texts, owners, positions, query)
    defined = np.array([expected_of_codes(texts, o, p, q) for o, p, q in zip(owners, positions, query, strict=True)])
    np.testing.assert_allclose(out, defined, rtol=0, atol=3e-4)
    assert np.linalg.norm(out - defined) < 1e-4 * np.linalg.norm(defined)
    plain = expected(texts, owners, positions, query)
    assert np.linalg.norm(out - plain) < 5e-4 * np.linalg.norm(plain)


def test_integers_at_their_limits() -> None:
    """Everything in one column, or the same everywhere, with all signs alike: products add up to what 32 bits hold, and no further."""
    shape = Shape(heads=2, kv_heads=1, size=256, dtype="int16", scale=1e-3)
    texts = Texts.of(shape, (256,))
    for position in range(256):
        key = np.ones((1, 256), F) if position % 2 else np.eye(1, 256, dtype=F) * 16
        texts.cache.write(LAYER, texts.sequences[0].blocks[0], position, key, np.full((1, 256), 3, F))
        texts.keys[0][position], texts.values[0][position] = key, 3
    query = np.stack([np.full(256, 5, F), np.eye(1, 256, dtype=F)[0] * 80])[None]
    np.testing.assert_allclose(attend(texts, [0], [255], query), expected(texts, [0], [255], query), rtol=1e-4)


def test_nothing_in_codes() -> None:
    """Keys, values and queries of zeros: all keys weigh the same, and no number is divided by zero."""
    shape = Shape(dtype="int16")
    texts = Texts.of(shape, (20,))
    for position in range(20):
        zero = np.zeros((3, 64), F)
        texts.cache.write(
            LAYER, texts.sequences[0].blocks[0], position, zero if position < 10 else zero + 1, zero if position < 19 else zero + 20
        )
    found = attend(texts, [0, 0], [9, 19], np.stack([queries(shape, 1)[0], np.zeros((9, 64), F)]))
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 1, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [("int16", 80), ("int16", 21), ("int8", 8)])
def test_cache_write_of_codes(dtype: str, size: int) -> None:
    """As kv.py writes them, but for the last bit: sums of squares are added up in another order."""
    shape = Shape(kv_heads=3, size=size, dtype=dtype)
    texts = Texts.of(shape, (300, 20))
    owners, positions = [0, 1, 0, 0, 1], [255, 19, 256, 299, 3]
    rng = np.random.default_rng(5)
    key, value = rng.standard_normal((2, 5, 3, size)).astype(F) * np.exp(rng.uniform(-20, 5, (2, 5, 3, 1))).astype(F)
    key[3, 1] = value[4, 2] = 0
    wanted = KVCache(texts.cache.layers, texts.cache.blocks, dtype)
    wanted.data[:] = texts.cache.data
    for t, (owner, position) in enumerate(zip(owners, positions, strict=True)):
        wanted.write(LAYER, texts.sequences[owner].blocks[position // BLOCK], position % BLOCK, key[t], value[t])
    assert write(texts, owners, positions, key, value) == 0
    for block in range(texts.cache.blocks):
        np.testing.assert_allclose(texts.cache.scales(LAYER, block), wanted.scales(LAYER, block), rtol=1e-6)
        for name in ("keys", "values"):
            found, right = (getattr(cache, name)(LAYER, block).astype(int) for cache in (texts.cache, wanted))
            right = right[..., :size, :] if name == "values" else right
            found = found[..., :size, :] if name == "values" else found
            assert abs(found - right).max() <= 1 and (found != right).mean() < 0.001
    outside = [np.delete(c.data.reshape(c.blocks, -1), range(*c.layer_offsets[LAYER : LAYER + 2]), 1) for c in (texts.cache, wanted)]
    assert np.array_equal(*outside)


@pytest.mark.parametrize("name", OF_CODES)
def test_bits_of_codes_do_not_depend_on_how_tokens_come_together(name: str) -> None:
    check_bits(OF_CODES[name])


def test_kernels_of_codes_call_nothing_and_multiply_integers() -> None:
    names = [("attention.rows", 64, "int16", 3, 8), ("attention.shared", 64, "int8", 3)]
    for made in [kernel(*name) for name in names]:
        assert made.calls() == []
        wanted = "vpdpwssd" if "vnni" in target.dot4_kind() else "pmaddwd" if target.is_x86() else "mul"
        assert wanted in made.assembly
    assert kernel("cache.write", "int16").calls() == kernel("cache.write", "int8").calls() == []


@only_x86
@pytest.mark.parametrize(
    ("cpu", "chosen"),
    [("haswell", "limits or call_nothing or (over_codes and grouped)"), ("x86-64", "cache_write or (over_codes and odd)")],
)
def test_other_cpus_pass_these_tests(cpu: str, chosen: str) -> None:
    pass_as(cpu, f"({chosen}) and not other_cpus", __file__)
