"""Element-wise operations, norms, rotations, positions, wanted rows and the choice of experts, against the reference backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from steps import F, Operand, Tokens, applied, counts, random

from llmcli.backends.cuda.kernels import mathematics
from llmcli.backends.cuda.kernels.elementwise import KERNELS, elementwise
from llmcli.backends.cuda.kernels.norm import norm
from llmcli.backends.cuda.kernels.platform import device
from llmcli.backends.cuda.kernels.position import position_add
from llmcli.backends.cuda.kernels.rope import rope
from llmcli.backends.cuda.kernels.route import route
from llmcli.backends.cuda.kernels.select import select_rows
from llmcli.backends.reference import elementwise as plain
from llmcli.backends.reference import embed, experts
from llmcli.backends.reference import norm as plain_norm
from llmcli.backends.reference import rope as plain_rope
from llmcli.ops import ACTIVATIONS
from llmcli.plan import CacheLayer

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered")  # kernels know of no warnings
Array = npt.NDArray[Any]
CAP, FACTOR = 1.5, 0.75
PLAIN: dict[str, Any] = {
    "add": plain.add,
    "multiply": plain.multiply,
    "scale": lambda a, b: plain.scale(a, factor=FACTOR),
    "softcap": lambda a, b: plain.softcap(a, cap=CAP),
    "clip": lambda a, b: plain.clip(a, limit=CAP),
    **{name: lambda a, b, name=name: plain.activation(a, kind=name) for name in ACTIVATIONS},
    **{f"{name}_multiply": lambda a, b, name=name: plain.activation(a, kind=name) * b for name in ACTIVATIONS},
}


@device
def cosine(angle):
    return mathematics.cosine_sine(angle)[0]


@device
def sine(angle):
    return mathematics.cosine_sine(angle)[1]


def test_mathematics() -> None:
    x = np.concatenate([np.linspace(-110, 92, 797), random(200) * 5, [0, np.inf, -np.inf]]).astype(F)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(wide).astype(F)
    np.testing.assert_array_max_ulp(applied(mathematics.exp, x), exact, 1)
    np.testing.assert_array_max_ulp(applied(mathematics.tanh, x), np.tanh(wide).astype(F), 3)
    nothing = np.full(1, np.nan, F)
    assert np.isnan(applied(mathematics.exp, nothing)) and np.isnan(applied(mathematics.tanh, nothing))
    angles = np.array([0.0, 0.7, 1.6, 3.0, 4.8, 6.0, 131071.0, 1.5e6])
    for function, expected in ((cosine, np.cos(angles)), (sine, np.sin(angles))):
        np.testing.assert_allclose(applied(function, angles, dtype=np.float64), expected, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "scale_rows"])
@pytest.mark.parametrize("outputs", [0, 1])
def test_elementwise(name: str, outputs: int) -> None:
    a, b = random(2, 137), random(2, 137, seed=2) * F(3)
    a[0, :4] = 0, -30, 30, -0.0
    value = FACTOR if name == "scale" else CAP
    kernel, grid, block = elementwise(name, 3, 137)
    out, in_place = Operand.empty(2, 137, 5), Operand.of(a)
    step = counts(5, (1, 4)) if outputs else counts(2)
    kernel[grid, block](step, outputs, *Operand.of(a).args, *Operand.of(b, 7).args, *out.args, 137, value)
    np.testing.assert_allclose(out.taken(2), PLAIN[name](a, b), rtol=2e-6, atol=1e-6)
    kernel[grid, block](step, outputs, *in_place.args, *Operand.of(b, 7).args, *in_place.args, 137, value)
    np.testing.assert_array_equal(in_place.taken(2), out.taken(2))


def test_scale_rows() -> None:
    a, factor, out = random(3, 40), random(3, 1, seed=5), Operand.empty(3, 40)
    kernel, grid, block = elementwise("scale_rows", 4, 40)
    kernel[grid, block](counts(3), 0, *Operand.of(a).args, *Operand.of(factor).args, *out.args, 40, 0.0)
    np.testing.assert_array_equal(out.taken(3), a * factor)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("heads, shared", [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("weighted", [True, False])
def test_norm(kind: str, heads: int, shared: bool, weighted: bool) -> None:
    columns = 75 if heads == 1 else 40
    x = random(4, heads * columns) * F(3) + F(1)
    size = columns if shared else heads * columns
    weight, bias = (random(size, seed=n) if weighted else None for n in (3, 4))
    expected = plain_norm.norm(x, weight, bias, kind=kind, eps=1e-5, heads=heads)
    nothing = np.full(1, np.nan, F)
    kernel, grid, block = norm(kind, 6, heads)
    fault = np.zeros(1, np.int64)

    def run(rows: Array) -> Array:
        operand = Operand.of(rows)
        arrays = (nothing if weight is None else weight, weighted, nothing if bias is None else bias, weighted)
        more = (heads, 0 if shared else columns) if heads > 1 else ()
        kernel[grid, block](counts(len(rows)), 0, fault, 7, *operand.args, *arrays, *operand.args, columns, 1e-5, *more)
        return operand.taken(len(rows))

    found = run(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    assert fault[0] == 0
    np.testing.assert_array_equal(run(x[1:2]), found[1:2])
    x[2, -1] = np.nan
    x[3, -1] = np.inf
    with np.errstate(invalid="ignore"):
        run(x)
    assert fault[0] in {(7 << 32) + 2 + 1, (7 << 32) + 3 + 1}


def test_a_norm_of_wanted_rows_names_the_token() -> None:
    fault, x, nothing = np.zeros(1, np.int64), random(2, 40), np.zeros(1, F)
    x[1, 3] = np.nan
    kernel, grid, block = norm("rms", 2, 1)
    operand = Operand.of(x)
    kernel[grid, block](counts(9, (2, 6)), 1, fault, 3, *operand.args, nothing, 0, nothing, 0, *operand.args, 40, 1e-5)
    assert fault[0] == (3 << 32) + 6 + 1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads, size, turned", [(6, 24, 24), (5, 20, 12)])
def test_rope(interleaved: bool, heads: int, size: int, turned: int) -> None:
    x, positions = random(3, heads * size), np.array([0, 9, 131071], np.int32)
    frequencies = tuple(float(f) for f in 10000.0 ** -(np.arange(turned // 2) / (turned // 2)))
    step = Tokens.of([CacheLayer(1, 8)], (1,)).reference([0, 0, 0], positions)
    shape = {"heads": heads, "head_size": size, "size": turned}
    expected = plain_rope.rope(step, x, **shape, interleaved=interleaved, frequencies=frequencies, factor=1.1)
    kernel, grid, block = rope(interleaved, 4, heads, turned // 2)
    operand = Operand.of(x)
    kernel[grid, block](counts(3, positions=positions), *operand.args, heads, size, turned // 2, np.array(frequencies, F), 1.1)
    np.testing.assert_allclose(operand.taken(3), expected, rtol=3e-7, atol=3e-7)


def test_positions_and_wanted_rows() -> None:
    x, table, positions = random(3, 45), random(12, 45, seed=2), np.array([4, 0, 9], np.int32)
    step = Tokens.of([CacheLayer(1, 8)], (1,)).reference([0, 0, 0], positions)
    operand, wanted = Operand.of(x), Operand.empty(2, 45)
    kernel, grid, block = position_add(4, 45)
    kernel[grid, block](counts(3, positions=positions), *operand.args, table.reshape(-1), 45, 2)
    np.testing.assert_array_equal(operand.taken(3), embed.position_add(step, x, table, offset=2))
    kernel, grid, block = select_rows(3, 45)
    kernel[grid, block](counts(3, (0, 2)), *Operand.of(x).args, *wanted.args, 45)
    np.testing.assert_array_equal(wanted.taken(2), x[[0, 2]])


@pytest.mark.parametrize("softmax, normalise", [("before", True), ("before", False), ("after", True)])
@pytest.mark.parametrize("count, chosen", [(5, 5), (40, 6), (70, 1)])
def test_route(softmax: str, normalise: bool, count: int, chosen: int) -> None:
    logits = (random(5, count) * F(4)).round(0)  # many are equal
    logits[4] = 1
    ids, weights = Operand.empty(5, chosen, dtype=np.int32), Operand.empty(5, chosen)
    kernel, grid, block = route(softmax, 7)
    kernel[grid, block](counts(5), *Operand.of(logits).args, *ids.args, *weights.args, count, chosen, int(normalise), 2.5)
    expected = experts.route(logits, count=count, chosen=chosen, softmax=softmax, normalise=normalise, scale=2.5)
    np.testing.assert_array_equal(ids.taken(5), expected[0])
    np.testing.assert_allclose(weights.taken(5), expected[1], rtol=2e-6)


def test_route_has_a_choice_without_numbers() -> None:
    logits = np.full((1, 40), np.nan, F)
    logits[0, 7] = 1
    ids, weights = Operand.empty(1, 3, dtype=np.int32), Operand.empty(1, 3)
    kernel, grid, block = route("after", 1)
    kernel[grid, block](counts(1), *Operand.of(logits).args, *ids.args, *weights.args, 40, 3, 1, 1.0)
    assert ids.taken(1).tolist() == [[7, 0, 1]]
