"""The CPU backend's mathematics, elementwise operations, norms, rotations, row copies and logit statistics, against
float64. Outputs are NaN before, and what lies between rows must stay so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from kernel_calls import Kernel, address, call, header, kernel
from llmcli.backends.cpu.kernels import elementwise, mathematics
from llmcli.backends.cpu.records import ELEMENTWISE, NORM, POSITION, ROPE, SELECT, TOP, bits, pack

Array = npt.NDArray[Any]
F = np.float32
WIDTHS = (1, 15, 16, 17, 48, 105)


def rows_of(x: Array, gap: int = 3) -> Array:
    """The rows of x with NaN between them: a view whose base is wider."""
    wide = np.full((x.shape[0], x.shape[1] + gap), np.nan, F)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def assert_gaps(view: Array) -> None:
    assert np.isnan(view.base[:, view.shape[1] :]).all()


def apply(run: Kernel, a: Array, b: Array | None = None, value: float = 0.0, in_place: bool = False) -> Array:
    """out = f(a, b, value) on every row."""
    x, y = rows_of(a), None if b is None else rows_of(b, 5)
    out = x if in_place else rows_of(np.full(a.shape, np.nan), 1)
    fields = {"a": address(x), "a_stride": x.strides[0], "out": address(out), "out_stride": out.strides[0], "value": bits(value)}
    args = pack(ELEMENTWISE, header=0, outputs=0, b=address(y), b_stride=0 if y is None else y.strides[0], columns=a.shape[1], **fields)
    call(run, args, range(len(a)))
    assert_gaps(out)
    return out


def compiled(function: Callable[..., Any]) -> Kernel:
    """A kernel that applies a function of one vector."""

    @njit(forceinline=True)
    def one(a: Any, b: Any, value: Any) -> Any:
        return function(a)

    return Kernel(elementwise.rows(one, 1)())


def ulps(values: Array, exact: Array) -> float:
    """The largest error in units of the last place of float32."""
    return float((np.abs(values - exact) / np.spacing(np.abs(exact).astype(F))).max())


# --- Mathematics


def test_exp() -> None:
    run = compiled(mathematics.exp)
    x = np.concatenate([np.linspace(-103.9, 88.72, 1_000_003), np.linspace(-1, 1, 100_000), [0, 1e-30]]).astype(F)
    assert ulps(apply(run, x[None])[0], np.exp(x.astype(float))) < 1.2
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 88.8, -104, -0.0], F)
    assert np.array_equal(apply(run, special[None])[0], [np.inf, 0, np.nan, np.inf, 0, np.inf, 0, 1], equal_nan=True)


def test_tanh() -> None:
    run = compiled(mathematics.tanh)
    x = np.concatenate([np.linspace(-12, 12, 500_001), 10.0 ** np.linspace(-37, 1, 50_000)]).astype(F)
    assert ulps(apply(run, x[None])[0], np.tanh(x.astype(float))) < 2
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], F)
    assert np.array_equal(apply(run, special[None])[0], [1, -1, np.nan, 1, -1], equal_nan=True)


def test_normal_distribution() -> None:
    run = compiled(mathematics.normal_distribution)
    x = np.linspace(-13, 8, 50_001).astype(F)
    exact = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x.astype(float)])
    values = apply(run, x[None])[0]
    assert np.abs(values - exact).max() < 2e-7
    assert np.abs(values / exact - 1).max() < 1e-5  # small ones too
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], F)
    assert np.array_equal(apply(run, special[None])[0], [1, 0, np.nan, 1, 0], equal_nan=True)


# --- Elementwise


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


EXACT: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2)(x),
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
}


@pytest.mark.parametrize("kind", EXACT)
def test_activations(kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 105)).astype(F) * F(4)
    for width in WIDTHS:
        part = np.ascontiguousarray(x[:, :width])
        exact = EXACT[kind](part.astype(float))
        for in_place in (False, True):
            out = apply(kernel(f"elementwise.{kind}"), part, in_place=in_place)
            np.testing.assert_allclose(out, exact, rtol=1e-6, atol=1e-6)
    special = np.array([[np.nan, 3e38, -3e38, -100, 100, 0, np.inf]], F)
    out = apply(kernel(f"elementwise.{kind}"), special)[0]
    assert np.isnan(out[0]) and not np.isnan(out[1:]).any()


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_gated_activations_are_the_activation_and_a_product(kind: str) -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 3, 37)).astype(F)
    out = apply(kernel(f"elementwise.{kind}_multiply"), a, b)
    assert np.array_equal(out, apply(kernel(f"elementwise.{kind}"), a) * b)
    assert np.array_equal(out, apply(kernel(f"elementwise.{kind}_multiply"), a, b, in_place=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_arithmetic(width: int) -> None:
    a, b = np.random.default_rng(3).standard_normal((2, 3, width)).astype(F)
    assert np.array_equal(apply(kernel("elementwise.add"), a, b), a + b)
    assert np.array_equal(apply(kernel("elementwise.add"), a, b, in_place=True), a + b)
    assert np.array_equal(apply(kernel("elementwise.multiply"), a, b), a * b)
    assert np.array_equal(apply(kernel("elementwise.scale"), a, value=0.3), a * F(0.3))
    a[0, 0] = np.nan  # it is not hidden
    assert np.array_equal(apply(kernel("elementwise.clip"), a, value=0.7), np.clip(a, F(-0.7), F(0.7)), equal_nan=True)
    a[0, 0] = 0
    exact = 2.5 * np.tanh(4 * a.astype(float) / 2.5)
    np.testing.assert_allclose(apply(kernel("elementwise.softcap"), 4 * a, value=2.5), exact, rtol=1e-6)


# --- Norms


def norm(kind: str, x: Array, weight: Array, bias: Array | None = None, heads: int = 1, outputs: int = 0) -> tuple[Array, int]:
    """The output and the error word; output rows 0, 1, .. are the step's tokens 7, 6, .."""
    given, out, error = rows_of(x), rows_of(np.full(x.shape, np.nan), 1), np.zeros(1, np.int64)
    tokens = np.arange(7, 7 - len(x), -1, dtype=np.int32)
    head = header(error=address(error), output_rows=address(tokens))
    step = 4 * (x.shape[1] // heads) if len(weight) == x.shape[1] else 0
    fields = {"x": address(given), "x_stride": given.strides[0], "out": address(out), "out_stride": out.strides[0], "columns": x.shape[1]}
    weights = {"weight": address(weight), "bias": address(bias), "weight_step": step}
    args = pack(NORM, header=address(head), outputs=outputs, **fields, **weights, heads=heads, eps=bits(1e-5), op=9)
    call(kernel(f"norm.{kind}"), args, range(len(x)))
    assert_gaps(out)
    return out, int(error[0])


def exact_norm(kind: str, x: Array, weight: Array, bias: Array | None, heads: int) -> Array:
    parts = x.astype(float).reshape(len(x), heads, -1)
    if kind == "layer":
        parts = parts - parts.mean(-1, keepdims=True)
    out = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5) * weight.reshape(-1, parts.shape[2])
    return (out if bias is None else out + bias.reshape(-1, parts.shape[2])).reshape(x.shape)


NORMS = [(1, 1, True), (16, 1, True), (105, 1, True), (576, 1, True), (60, 3, False), (60, 3, True)]
"""Width, heads, whether each head has its own weight."""


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("width", "heads", "own"), NORMS)
def test_norms(kind: str, width: int, heads: int, own: bool) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((3, width)) * 3 + 2).astype(F)
    weight, bias = rng.standard_normal((2, width if own else width // heads)).astype(F)
    for b in (None, bias):
        out, error = norm(kind, x, weight, b, heads)
        np.testing.assert_allclose(out, exact_norm(kind, x, weight, b, heads), rtol=2e-6, atol=2e-6)
        assert error == 0


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_norms_report_what_is_not_finite_once(kind: str, bad: float) -> None:
    x = np.ones((4, 40), F)
    x[1, 39] = x[3, 0] = bad
    weight = np.ones(20, F)
    assert norm(kind, x, weight, heads=2)[1] == 1 + (9 << 32) + 1
    assert norm(kind, x, weight, heads=2, outputs=1)[1] == 1 + (9 << 32) + 6


# --- Rotary positions


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "head_size"), [(2, 8), (16, 16), (20, 24), (64, 64), (96, 100)])
def test_rope(interleaved: bool, size: int, head_size: int) -> None:
    positions = np.array([0, 1, 4097, 1_000_000], np.int32)
    frequencies = 10000.0 ** -(np.arange(size // 2) / (size // 2))
    x = np.random.default_rng(6).standard_normal((4, 3, head_size)).astype(F)
    angles = (positions.astype(F)[:, None] * frequencies.astype(F)).astype(float)
    cosine, sine = ((1.25 * f(angles))[:, None] for f in (np.cos, np.sin))
    first, second = (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(0, size // 2), slice(size // 2, size))
    exact = x.astype(float)
    a, b = exact[..., first].copy(), exact[..., second].copy()
    exact[..., first], exact[..., second] = a * cosine - b * sine, b * cosine + a * sine
    out, head = rows_of(x.reshape(4, -1)), header(positions=address(positions))
    fields = {"heads": 3, "head_size": head_size, "size": size, "frequencies": address(frequencies), "factor": bits(1.25)}
    args = pack(ROPE, header=address(head), x=address(out), x_stride=out.strides[0], **fields)
    call(kernel("rope.interleaved" if interleaved else "rope.half"), args, range(4))
    np.testing.assert_allclose(out.reshape(x.shape), exact, rtol=0, atol=1e-6)
    assert np.array_equal(out.reshape(x.shape)[..., size:], x[..., size:])
    assert_gaps(out)


# --- Rows


def test_select_and_position_add() -> None:
    rng = np.random.default_rng(7)
    for width in WIDTHS:
        x, table = rows_of(rng.standard_normal((5, width))), rng.standard_normal((12, width)).astype(F)
        chosen, positions = np.array([1, 2, 4], np.int32), np.array([9, 0, 3, 3, 8], np.int32)
        head, out = header(output_rows=address(chosen), positions=address(positions)), rows_of(np.full((3, width), np.nan), 1)
        place = {"header": address(head), "x": address(x), "x_stride": x.strides[0], "columns": width}
        call(kernel("select.rows"), pack(SELECT, **place, out=address(out), out_stride=out.strides[0]), range(3))
        assert np.array_equal(out, x[chosen])
        assert_gaps(out)
        wanted = x + table[positions + 2]
        call(kernel("position.add"), pack(POSITION, **place, table=address(table), offset=2), range(5))
        assert np.array_equal(x, wanted)
        assert_gaps(x)


# --- Logits


def top(logits: Array) -> tuple[Array, Array, Array]:
    """ids, values and statistics of each row."""
    given, keep = rows_of(logits), min(256, logits.shape[1])
    ids, values = np.full((len(logits), keep), -1, np.int32), np.full((len(logits), keep), np.nan, F)
    stats = np.full((len(logits), 2), np.nan)
    fields = {"logits": address(given), "logits_stride": given.strides[0], "vocab": logits.shape[1], "keep": keep}
    args = pack(TOP, header=0, **fields, ids=address(ids), values=address(values), stats=address(stats))
    call(kernel("top.rows"), args, reversed(range(2 * len(logits))))
    return ids, values, stats


def logits_of(kind: str, vocab: int) -> Array:
    rng = np.random.default_rng(8)
    return {
        "random": lambda: rng.standard_normal((2, vocab)) * 5,
        "ascending": lambda: np.arange(2 * vocab).reshape(2, vocab) / 100,
        "descending": lambda: -np.arange(2 * vocab).reshape(2, vocab) / 100,
        "equal": lambda: np.full((2, vocab), -3.5),
        "few values": lambda: rng.integers(-2, 2, (2, vocab)) * 1.5,
        "both zeros": lambda: np.where(rng.integers(0, 2, (2, vocab)), 0.0, -0.0),
        "mostly forbidden": lambda: np.where(rng.integers(0, 50, (2, vocab)), -np.inf, rng.standard_normal((2, vocab))),
        "huge": lambda: rng.standard_normal((2, vocab)) * 1e37,
    }[kind]().astype(F)


@pytest.mark.parametrize("kind", ["random", "ascending", "descending", "equal", "few values", "both zeros", "mostly forbidden", "huge"])
@pytest.mark.parametrize("vocab", [1, 7, 255, 256, 257, 1025, 20_003])
def test_top(kind: str, vocab: int) -> None:
    logits = logits_of(kind, vocab)
    if np.isneginf(logits).all(1).any():
        logits[:, 0] = 1
    ids, values, stats = top(logits)
    order = np.argsort(-logits, -1, kind="stable")[:, :256]
    assert np.array_equal(ids, order)
    assert np.array_equal(values, np.take_along_axis(logits, order, 1))
    shifted = logits.astype(float) - logits.max(1, keepdims=True)
    weights = np.exp(shifted)
    logsum = np.log(weights.sum(1))
    entropy = logsum - (weights * np.where(weights > 0, shifted, 0)).sum(1) / weights.sum(1)
    np.testing.assert_allclose(stats[:, 0], logits.max(1) + logsum, rtol=1e-7, atol=2e-7)
    np.testing.assert_allclose(stats[:, 1], entropy, rtol=1e-6, atol=1e-6)


def test_top_of_nan_is_nan_and_ends() -> None:
    logits = np.zeros((1, 3000), F)
    logits[0, 5:2000] = np.array([0xFFFFFFFF, 0x7FC00000], np.uint32).view(F)[[0, 1]].repeat(1000)[:1995]
    ids, _, stats = top(logits)
    assert len(set(ids[0])) == 256 and ids.min() >= 0 and ids.max() < 3000
    assert np.isnan(stats).all()


def test_elementwise_kernels_call_nothing() -> None:
    names = ["norm.rms", "norm.layer", "rope.half", "rope.interleaved", "select.rows", "position.add", "top.rows"]
    names += [f"elementwise.{name}" for name in elementwise.KERNELS]
    assert {name: kernel(name).calls() for name in names} == {name: [] for name in names}
