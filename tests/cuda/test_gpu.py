"""On a real GPU: pytest -m gpu. Without one they skip. What they compare is what the simulator's tests compare, on larger texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from devices import SPECS, Model, apart, made, placed, read

from llmcli.backends.backend import Batch
from llmcli.backends.cuda import device
from llmcli.errors import LlmError
from llmcli.kv import KVCache
from llmcli.offload.place import Share

pytestmark = pytest.mark.gpu

CONTEXT, TOKENS = 700, 600
STORED = (("int4", "f16"), ("int8", "f16"), ("int4_offset", "f32"), ("f16", "f32"))
CASES = [(name, weights, kv) for name in SPECS for weights, kv in STORED]
SAME_TOP, MEAN = 0.995, 0.02
"""Least share of positions with the CPU's likeliest token; largest mean distance of log-probabilities (nats)."""


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if device.simulated():
        pytest.skip("the simulator is no GPU")
    try:
        device.usable()
    except LlmError as error:
        pytest.skip(str(error))


def model(name: str, weights: str, kv: str) -> Model:
    spec = SPECS[name]
    positions = CONTEXT + spec.position_offset if spec.positions else 0
    found = made(replace(spec, context=CONTEXT, positions=positions), weights, kv)
    return replace(found, cache=KVCache(found.plan.cache, 8, kv))


@pytest.mark.parametrize(("name", "weights", "kv"), CASES)
def test_as_the_cpu(name: str, weights: str, kv: str) -> None:
    """A prompt in pieces, then tokens one by one (recorded steps), against the CPU; all layers, half of them, two parts on one GPU. With
    all layers there, the bits do not depend on pieces and parts."""
    whole = model(name, weights, kv)
    ids = np.random.default_rng(3).integers(0, whole.plan.vocab, TOKENS).astype(np.int32)
    with placed(whole, Share("cpu", 2)) as cpu:
        expected = read(cpu, ids).logits.copy()
    larger = Share("cuda:0", 2, 1024), Share("cuda:0", 1, 1024)
    placements = [(Share("cuda:0", 2),), (larger[0],), (Share("cuda:0", 1), larger[1]), (Share("cpu", 1), larger[1])]
    first = None
    for placement in placements:
        with placed(whole, *placement) as there:
            found = read(there, ids).logits.copy()
            same = (found.argmax(-1) == expected.argmax(-1)).mean()
            assert same >= SAME_TOP and np.mean([apart(a[None], b[None]) for a, b in zip(found, expected, strict=True)]) <= MEAN, placement
            first = found if first is None else first
            if placement[0].device != "cpu":
                np.testing.assert_array_equal(found, first, "a token's numbers depend on pieces or parts")
            text = there.cache.sequence()
            there.runner.run(Batch.of(text, ids[:-20], "none"))
            for at in range(TOKENS - 20, TOKENS):
                alone = there.runner.run(Batch.of(text, ids[at : at + 1])).logits[0]
                np.testing.assert_array_equal(alone, found[at], "a token's numbers depend on what is computed with it")


def test_steps_are_recorded() -> None:
    from llmcli.backends.cuda.run import CudaRunner

    whole = model("grouped", "int4", "f16")
    with placed(whole, Share("cuda:0", 2)) as there:
        text = there.cache.sequence()
        for token in range(4):
            there.runner.run(Batch.of(text, np.array([token], np.int32)))
        (part,) = there.runner._parts  # type: ignore[attr-defined]
        runner = part.runner
        assert isinstance(runner, CudaRunner)
        assert runner.recorded == 1
