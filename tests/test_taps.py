"""What a plan keeps of its layers is what they computed, on every architecture, and keeping it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from arch_models import ARCHS, Model, opened
from llmcli.attention import weights
from llmcli.backends import backend
from llmcli.backends.backend import Batch, Result
from llmcli.backends.cpu import run as cpu
from llmcli.backends.reference import attention as reference
from llmcli.errors import InternalError
from llmcli.kv import KVCache, Sequence
from llmcli.models import decoder
from llmcli.plan import Plan
from test_archs import VARIANTS, golden

Arrays = dict[str, npt.NDArray[np.float32]]
EXACT, CLOSE = 2e-6, 2e-5


@pytest.fixture(params=["reference", "cpu"], scope="module")
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(VARIANTS), scope="module")
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tapped(variant: str, backend_name: str) -> Iterator[Model]:
    with opened(ARCHS / variant, len(golden(variant)[0]), name=backend_name, taps=decoder.TAPS) as model:
        yield model


def step(model: Model, ids: npt.NDArray[np.int32], outputs: str = "all") -> tuple[Sequence, Result]:
    """The sequence, which still has what was computed, and the step's result."""
    sequence = model.cache.sequence()
    return sequence, model.runner.run(Batch.of(sequence, ids, outputs))


def other(model: Model, plan: Plan, name: str) -> Model:
    """The same weights behind another plan; the caller closes its runner."""
    cache = KVCache(plan.cache, model.cache.blocks, model.cache.dtype)
    return Model(model.spec, plan, model.weights, cache, backend.get(name).load(plan, model.weights, cache, 1, plan.context))


def test_without_taps_a_plan_is_as_it_was(variant: str, tapped: Model) -> None:
    """Operations that write buffers of their own, or what the head writes anew anyway, are all that taps add."""
    plain = decoder.plan(tapped.spec, tapped.plan.context)
    assert plain.taps == () and tapped.plan.weights == plain.weights
    theirs = iter((op.kind, op.label, op.params) for op in tapped.plan.ops)
    assert all((op.kind, op.label, op.params) in theirs for op in plain.ops)  # in this order
    added = {b.name for b in tapped.plan.buffers} - {b.name for b in plain.buffers}
    assert added == {tapped.plan.buffers[number].name for number in tapped.plan.taps}
    for tap in decoder.TAPS:
        assert decoder.plan(tapped.spec, tapped.plan.context, (tap,)).taps
    with pytest.raises(InternalError):
        decoder.plan(tapped.spec, 16, ("gradients",))


def test_taps_change_no_bit(variant: str, backend_name: str, tapped: Model) -> None:
    ids, _ = golden(variant)
    plain = other(tapped, decoder.plan(tapped.spec, tapped.plan.context), backend_name)
    try:
        np.testing.assert_array_equal(tapped.logits(ids), plain.logits(ids))
        np.testing.assert_array_equal(tapped.logits(ids, 3), plain.logits(ids))
    finally:
        plain.runner.close()


def test_the_lens_is_the_model_with_fewer_layers(variant: str, backend_name: str, tapped: Model) -> None:
    """Bit for bit: the head reads what a shorter model's head would read."""
    ids, _ = golden(variant)
    sequence, result = step(tapped, ids)
    found = {name: array.copy() for name, array in result.taps.items() if name.startswith("lens.")}
    sequence.close()
    count = len(tapped.spec.layers)
    assert sorted(found) == sorted(["lens.embedding", *(f"lens.{n}" for n in range(count - 1))])
    for n in range(count - 1):
        shorter = other(tapped, decoder.plan(replace(tapped.spec, layers=tapped.spec.layers[: n + 1]), tapped.plan.context), backend_name)
        try:
            np.testing.assert_array_equal(found[f"lens.{n}"], shorter.logits(ids))
        finally:
            shorter.runner.close()


def test_residuals_are_what_the_head_reads(variant: str, backend_name: str, tapped: Model) -> None:
    """The model's own last operations, in the reference backend, make the lens' logits of them."""
    ids, _ = golden(variant)
    sequence, result = step(tapped, ids)
    with opened(ARCHS / variant, tapped.plan.context) as model:
        ops = model.plan.ops[[op.label for op in model.plan.ops].index("select") : -1]
        for name in ("embedding", *map(str, range(len(tapped.spec.layers)))):
            want = result.taps.get(f"lens.{name}", result.logits)
            got = finished(model, ops, result.taps[f"residual.{name}"])
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, float(np.abs(want).max())), err_msg=name)
    sequence.close()


def finished(model: Model, ops: tuple[object, ...], residual: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits [R, V] of a residual stream [R, H]: a plan of these operations alone, computed by the reference backend."""
    from llmcli.backends.reference.run import PLAIN

    x = residual
    for op in ops:
        if op.kind != "select_rows":  # type: ignore[attr-defined]
            operands = [None if name is None else model.runner.weights[name] for name in op.weights]  # type: ignore[attr-defined]
            x = PLAIN[op.kind](x, *operands, **op.params)  # type: ignore[attr-defined]
    return x


def test_attention_weights_are_those_of_the_softmax(
    variant: str, backend_name: str, tapped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the reference backend, which makes them one by one while it computes the text."""
    ids, _ = golden(variant)
    seen: list[npt.NDArray[np.float32]] = []
    softmax = reference.softmax

    def recorded(scores: npt.NDArray[np.float32], sinks: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        seen.append(softmax(scores, sinks))
        return seen[-1]

    monkeypatch.setattr(reference, "softmax", recorded)
    with opened(ARCHS / variant, tapped.plan.context) as model:
        model.logits(ids)
    monkeypatch.undo()
    sequence, result = step(tapped, ids, "none")
    ops = [op for op in tapped.plan.ops if op.kind == "attention"]
    assert len(seen) == len(ops) * len(ids)
    for op in ops:
        layer = op.params["layer"]
        assert isinstance(layer, int)
        sinks = None if op.weights[0] is None else tapped.weights[op.weights[0]].vector()
        heads = tapped.spec.layers[layer].attention.heads
        for head in range(heads):
            found = weights(op, head, result.taps[f"queries.{layer}"], sequence.keys(layer), sinks)
            for t, row in enumerate(found):
                want = seen[layer * len(ids) + t].reshape(heads, -1)[head]
                got = row[t + 1 - len(want) : t + 1]
                np.testing.assert_allclose(got, want, rtol=0, atol=EXACT if backend_name == "reference" else CLOSE)
                assert not row[: t + 1 - len(want)].any() and not row[t + 1 :].any()
    sequence.close()


def test_taps_of_a_step_in_pieces() -> None:
    """A step that is longer than what is computed at once has all its rows, those of tokens and those of outputs."""
    ids = golden("llama")[0]
    rows = np.array([1, 6, 7, len(ids) - 1], np.int32)
    found: list[Arrays] = []
    with opened(ARCHS / "llama", len(ids), name="cpu", taps=decoder.TAPS) as model:
        for most in (4, len(ids)):
            cache = KVCache(model.plan.cache, 2, "f32")
            runner = cpu.load(model.plan, model.weights, cache, 1, most)
            batch = Batch.of(cache.sequence(), ids)
            result = runner.run(replace(batch, outputs=rows))
            found.append({name: array.copy() for name, array in result.taps.items()} | {"logits": result.logits.copy()})
            runner.close()
    assert len(found[0]["lens.0"]) == len(rows) and len(found[0]["queries.1"]) == len(ids)
    for name, array in found[1].items():
        np.testing.assert_array_equal(found[0][name], array)
