"""Each operation of the reference backend against a plainer formula, one number at a time, in Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmcli.backends.backend import Batch
from llmcli.backends.reference import run
from llmcli.backends.reference.attention import attention, cache_write
from llmcli.backends.reference.elementwise import KINDS, activation, add, clip, multiply, scale, scale_rows, softcap
from llmcli.backends.reference.embed import embed, position_add
from llmcli.backends.reference.linear import Matrix, int8, linear, unpack
from llmcli.backends.reference.norm import norm
from llmcli.backends.reference.rope import rope
from llmcli.backends.reference.select import select_rows, top
from llmcli.backends.reference.step import Step
from llmcli.errors import NumericalError, Stopped
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache, Sequence
from llmcli.models import decoder
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec
from llmcli.ops import ACTIVATIONS, OPERATIONS, TOP
from llmcli.plan import CacheLayer


def random(*shape: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def step(positions: np.ndarray, tokens: np.ndarray | None = None, outputs: np.ndarray | None = None) -> Step:
    """A step of one sequence, for operations that need no cache."""
    tokens = np.zeros(len(positions), np.int32) if tokens is None else tokens
    outputs = ints() if outputs is None else outputs
    cache = KVCache([CacheLayer(1, 2)], 1)
    return Step(Batch(tokens, positions, (), np.zeros(len(positions), np.int32), outputs), cache)


def close(found: object, wanted: object, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)  # type: ignore[arg-type]


def test_every_operation_is_there_and_no_other() -> None:
    assert run.PLAIN.keys() | run.PLACED.keys() == set(OPERATIONS)
    assert all(run.supports(op, "") == "" for op in OPERATIONS)
    assert all(run.supports("linear", name) == "" for name in formats.names())
    assert run.supports("linear", "int3") and run.supports("convolution", "")


def test_embed_and_positions() -> None:
    table = random(7, 5)
    at = step(ints(2, 3), ints(6, 0))
    close(embed(at, Matrix(table)), [table[6], table[0]])
    close(position_add(at, np.ones((2, 5), np.float32), table, offset=1), [1 + table[3], 1 + table[4]])


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("shared", [True, False])
def test_norm(kind: str, heads: int, shared: bool) -> None:
    width = 35
    x = random(4, heads * width, spread=3.0) + 1
    weight = random(width if shared else heads * width, seed=1)
    bias = random(weight.size, seed=2) if kind == "layer" else None
    found = norm(x, weight, bias, kind=kind, eps=0.1, heads=heads)
    for t in range(4):
        for h in range(heads):
            part = [float(v) for v in x[t, h * width : (h + 1) * width]]
            mean = sum(part) / width if kind == "layer" else 0.0
            size = math.sqrt(sum((v - mean) ** 2 for v in part) / width + 0.1)
            for i in range(width):
                j = i if shared else h * width + i
                wanted = (part[i] - mean) / size * weight[j] + (bias[j] if bias is not None else 0)
                close(found[t, h * width + i], wanted, 1e-5)


def test_a_norm_without_weights_is_one_with_ones() -> None:
    x = random(3, 21)
    for kind in ("rms", "layer"):
        found, wanted = (norm(x, weight, kind=kind, eps=0.1, heads=3) for weight in (None, np.ones(7, np.float32)))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e19])
def test_norm_reports_what_is_not_finite(bad: float) -> None:
    x = random(3, 8)
    x[1, 5] = bad
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match="token 1"):
        norm(x, np.ones(8, np.float32), kind="rms", eps=1e-5, heads=1)


def test_linear() -> None:
    x, matrix, bias = random(3, 33), random(17, 33, seed=1), random(17, seed=2)
    wanted = [[sum(float(m) * float(v) for m, v in zip(row, t, strict=True)) for row in matrix] for t in x]
    close(linear(x, Matrix(matrix)), wanted, 1e-5)
    close(linear(x, Matrix(matrix), bias), np.array(wanted) + bias, 1e-5)
    assert linear(x[:0], Matrix(matrix)).shape == (0, 17)


def test_int8_activations() -> None:
    x = random(2, 70, spread=5.0)
    x[1, 32:64] = 0
    x[0, 64:] = [3, -3, 1.5, 0, 2.9999, -1]
    found = int8(x)
    for t in range(2):
        for start in (0, 32, 64):
            group = x[t, start : start + 32]
            most = np.abs(group).max()
            wanted = [float(np.rint(v / most * 127)) * most / 127 if most else 0.0 for v in group]
            close(found[t, start : start + 32], wanted)
    assert found[0, 64] == 3 and found[0, 65] == -3
    matrix = random(5, 70, seed=1)
    close(linear(x, Matrix(matrix, True)), found @ matrix.T, 1e-5)


@pytest.mark.parametrize("name", formats.names())
def test_unpack_gives_the_matrices_of_a_tensor(name: str) -> None:
    module = formats.get(name)
    parts = [random(17, 35, seed=seed) for seed in range(3)]
    packed = np.concatenate([module.pack(part) for part in parts])
    found = unpack(PackedTensor(name, (3, 17, 35), packed))
    assert len(found) == 3 and all(matrix.values.shape == (17, 35) for matrix in found)
    one = unpack(PackedTensor(name, (17, 35), module.pack(parts[1])))[0]
    np.testing.assert_array_equal(found[1].values, one.values)
    assert one.int8_activations == (module.FORMAT.activations == "int8")
    close(one.values, parts[1], 0.3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(interleaved: bool) -> None:
    heads, width, size = 3, 10, 6
    x, frequencies = random(2, heads * width), (1.0, 0.1, 0.01)
    found = rope(
        step(ints(5, 1000)), x, heads=heads, head_size=width, size=size, interleaved=interleaved, frequencies=frequencies, factor=1.25
    )
    wanted = x.astype(np.float64).copy()
    for t, position in enumerate((5, 1000)):
        for h in range(heads):
            for i in range(3):
                a, b = (h * width + j for j in ((2 * i, 2 * i + 1) if interleaved else (i, i + 3)))
                turn = complex(math.cos(position * frequencies[i]), math.sin(position * frequencies[i])) * 1.25
                turned = complex(x[t, a], x[t, b]) * turn
                wanted[t, a], wanted[t, b] = turned.real, turned.imag
    close(found, wanted, 1e-4)  # angles are float32: 1000 radians are known to 3e-5
    close(found[0], wanted[0], 1e-6)


def filled(positions: int, layers: list[CacheLayer], dtype: str = "f32", seed: int = 0) -> tuple[KVCache, Sequence, list[np.ndarray]]:
    """A cache with one sequence and, for each layer, its keys and values [2, positions, kv_heads * D]."""
    cache = KVCache(layers, 8, dtype)
    cache.sequence().extend(3)  # someone else's block comes first
    sequence = cache.sequence()
    batch = Batch.of(sequence, np.zeros(positions, np.int32))
    content = [random(2, positions, layer.kv_heads * layer.head_size, seed=seed + i) for i, layer in enumerate(layers)]
    for number, (keys, values) in enumerate(content):
        cache_write(Step(batch, cache), keys, values, layer=number)
    return cache, sequence, content


def plain_attention(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    position: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    slope: float = 0.0,
    sink: float | None = None,
) -> np.ndarray:
    """One head of one query: q [D], keys and values [positions, D]."""
    logits = {}
    for at in range(position + 1):
        if window and at <= position - window:
            continue
        logit = scale * sum(float(a) * float(b) for a, b in zip(q, keys[at], strict=True))
        logits[at] = (softcap * math.tanh(logit / softcap) if softcap else logit) + slope * (at - position)
    total = sum(math.exp(x) for x in logits.values()) + (math.exp(sink) if sink is not None else 0)
    return np.array([sum(math.exp(x) / total * float(values[at, i]) for at, x in logits.items()) for i in range(len(q))])


OPTIONS = {
    "plain": {},
    "window": {"window": 4},
    "softcap": {"softcap": 1.5},
    "alibi": {"slopes": (0.5, 0.25, 0.125, 0.0625)},
    "sinks": {"sinks": (1.0, -2.0, 0.0, 3.0)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_attention(option: str) -> None:
    heads, kv_heads, width = 4, 2, 6
    given = OPTIONS[option]
    cache, sequence, content = filled(300, [CacheLayer(1, 4), CacheLayer(kv_heads, width)])
    keys, values = (x.reshape(300, kv_heads, width) for x in content[1])
    positions = ints(0, 3, 255, 256, 299)
    query = random(5, heads * width, seed=9)
    batch = Batch(positions, positions, (sequence,), np.zeros(5, np.int32), ints())
    sinks, slopes = given.get("sinks"), given.get("slopes", ())
    found = attention(
        Step(batch, cache),
        query,
        None if sinks is None else np.array(sinks, np.float32),
        layer=1,
        heads=heads,
        kv_heads=kv_heads,
        head_size=width,
        scale=0.7,
        window=int(given.get("window", 0)),  # type: ignore[call-overload]
        softcap=float(given.get("softcap", 0.0)),  # type: ignore[arg-type]
        slopes=tuple(slopes),
    )
    for t, position in enumerate(positions):
        for h in range(heads):
            wanted = plain_attention(
                query[t, h * width : (h + 1) * width],
                keys[:, h // 2],
                values[:, h // 2],
                int(position),
                0.7,
                int(given.get("window", 0)),  # type: ignore[call-overload]
                float(given.get("softcap", 0.0)),  # type: ignore[arg-type]
                slopes[h] if slopes else 0.0,
                sinks[h] if sinks else None,
            )
            close(found[t, h * width : (h + 1) * width], wanted, 1e-5)


def test_attention_of_several_sequences_in_one_step() -> None:
    """Forks share their past and write apart; a step may hold tokens of both."""
    layer = CacheLayer(1, 4)
    cache, one, content = filled(260, [layer])
    two = one.fork()
    fresh = random(2, 2, 4, seed=5)
    for sequence in (one, two):
        sequence.extend(1)
    batch = Batch(ints(0, 0), ints(260, 260), (one, two), ints(0, 1), ints())
    cache_write(Step(batch, cache), fresh[0], fresh[1], layer=0)
    query = random(2, 4, seed=6)
    found = attention(Step(batch, cache), query, layer=0, heads=1, kv_heads=1, head_size=4, scale=0.5, window=0, softcap=0.0, slopes=())
    for t in range(2):
        keys, values = (np.concatenate([content[0][i], fresh[i, t : t + 1]]) for i in range(2))
        close(found[t], plain_attention(query[t], keys, values, 260, 0.5), 1e-5)


def test_cache_of_float16() -> None:
    cache, sequence, content = filled(20, [CacheLayer(2, 5)], "f16")
    step = Step(Batch.of(sequence, ints(0)), cache)
    keys = cache.keys(0, sequence.blocks[0])
    np.testing.assert_array_equal(keys[1, 1, :, 3], content[0][0, 19, 5:].astype(np.float16))
    large = random(1, 10)
    large[0, 7] = 70000
    with pytest.raises(NumericalError, match="Use --kv f32"):
        cache_write(step, large, random(1, 10), layer=0)


PLAIN = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


def test_activations_are_those_of_the_contract() -> None:
    assert set(KINDS) == set(ACTIVATIONS) == set(PLAIN)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(kind: str) -> None:
    x = np.array([[-80, -5, -1, -0.01, 0, 0.01, 1, 5, 80]], np.float32)
    found = activation(x, kind=kind)
    assert found.dtype == np.float32
    close(found, [[PLAIN[kind](float(v)) for v in x[0]]])


def test_elementwise() -> None:
    a, b = random(2, 5), random(2, 5, seed=1)
    close(multiply(a, b), [[float(x) * float(y) for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)])
    close(add(a, b), [[float(x) + float(y) for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)])
    close(scale_rows(a, b[:, :1]), [[float(x) * float(s[0]) for x in r] for r, s in zip(a, b, strict=True)])
    close(scale(a, factor=0.3), [[0.3 * float(x) for x in r] for r in a])
    close(softcap(100 * a, cap=30.0), [[30 * math.tanh(100 * float(x) / 30) for x in r] for r in a])
    close(clip(a, limit=0.5), [[max(-0.5, min(0.5, float(x))) for x in r] for r in a])
    assert all(
        out.dtype == np.float32 for out in (clip(a, limit=0.5), multiply(a, b), add(a, b), scale(a, factor=0.3), softcap(a, cap=3.0))
    )


def test_select_rows() -> None:
    x = random(4, 3)
    close(select_rows(step(ints(0, 1, 2, 3), outputs=ints(1, 3)), x), [x[1], x[3]])


@pytest.mark.parametrize("vocab", [5, 700])
def test_top(vocab: int) -> None:
    logits = random(2, vocab, spread=3.0)
    logits[0, 3] = logits[0, 1] = 50.0
    ids, values, log_sum, entropy = top(logits)
    assert ids.shape == values.shape == (2, min(TOP, vocab)) and ids.dtype == np.int32
    for r, row in enumerate(logits):
        order = sorted(range(vocab), key=lambda i: (-row[i], i))[:TOP]
        assert ids[r].tolist() == order and values[r].tolist() == [row[i] for i in order]
        total = sum(math.exp(float(x)) for x in row)
        shares = [math.exp(float(x)) / total for x in row]
        close(log_sum[r], math.log(total), 1e-12)
        close(entropy[r], -sum(p * math.log(p) for p in shares if p), 1e-9)


# The runner


def runner(nan: bool = False) -> tuple[run.ReferenceRunner, KVCache]:
    layer = Layer(Attention(2, 2, 4, 0.5), Mlp(5, "relu", gated=False))
    plan = decoder.plan(Spec(vocab=11, hidden=6, context=64, norm=Norm(), layers=(layer,)), 64)
    weights = {}
    for number, weight in enumerate(plan.weights.values()):
        values = random(*weight.shape, seed=number)
        if nan and weight.name == "layers.0.down":
            values[0, 0] = np.nan
        data = values.ravel().view(np.uint8) if weight.kind == "vector" else formats.get("f32").pack(values)
        weights[weight.name] = PackedTensor("vector" if weight.kind == "vector" else "f32", weight.shape, data)
    cache = KVCache(plan.cache, 4, "f32")
    return run.load(plan, weights, cache, 1, 64), cache


def test_wanted_rows_only() -> None:
    model, cache = runner()
    ids = ints(1, 5, 10, 0)
    whole = model.run(Batch.of(cache.sequence(), ids, "all"))
    last = model.run(Batch.of(cache.sequence(), ids, "last"))
    none = model.run(Batch.of(cache.sequence(), ids, "none"))
    np.testing.assert_array_equal(last.logits[0], whole.logits[3])
    assert none.logits.shape == (0, 11) and none.top_ids.shape == (0, 11) and none.entropy.shape == (0,)
    assert whole.top_ids[2, 0] == whole.logits[2].argmax()


def test_nan_in_the_weights_is_named() -> None:
    model, cache = runner(nan=True)
    with pytest.raises(NumericalError, match="NaN or infinity: at final_norm, token 0") as caught:
        model.run(Batch.of(cache.sequence(), ints(1, 2)))
    assert caught.value.code == 9


def test_stop() -> None:
    model, cache = runner()
    model.stop()
    with pytest.raises(Stopped):
        model.run(Batch.of(cache.sequence(), ints(1)))
    model.run(Batch.of(cache.sequence(), ints(1)))
