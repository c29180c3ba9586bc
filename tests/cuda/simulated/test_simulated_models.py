"""Whole models on a simulated GPU against the reference backend: a prompt, then a token by itself; in one piece and in parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from devices import SMALL, SPECS, apart, made, placed, read

from llmcli.backends import fuse
from llmcli.backends.backend import Batch
from llmcli.backends.cuda import run
from llmcli.errors import NumericalError
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Rope, Spec
from llmcli.offload.place import Share

CASES = {"grouped": ("int8", "f16"), "capped": ("int4_offset", "f32"), "slopes": ("f16", "f32"), "experts": ("int4", "f16")}
"""With which weights and cache."""
BOUND = 1e-4
"""Of log-probabilities: the order of float32 sums. Few tokens, so that no activation falls on the other side of a rounding to int8."""
IDS = np.array([3, 30], np.int32)


@pytest.mark.parametrize("name", CASES)
def test_a_model(name: str) -> None:
    model = made(SPECS[name], *CASES[name])
    expected = read(model, IDS)
    with placed(model, Share("cuda:0", 2)) as there:
        text = there.cache.sequence()
        found = there.runner.run(Batch.of(text, IDS, "all"))
        assert apart(found.logits, expected.logits) < BOUND
        np.testing.assert_allclose(found.logsumexp, expected.logsumexp, atol=1e-4)
        np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-4)
        logits = found.logits.copy()
        order = np.lexsort((np.broadcast_to(np.arange(logits.shape[1]), logits.shape), -logits))
        np.testing.assert_array_equal(found.top_ids, order[:, : found.top_ids.shape[1]])
        fork = text.fork()
        fork.truncate(len(IDS) - 1)
        alone = there.runner.run(Batch.of(fork, IDS[-1:]))  # in a block that both texts share, and that is copied for it
        np.testing.assert_array_equal(alone.logits[0], logits[-1], "a token's numbers depend on what is computed with it")


MIXTURE = replace(SMALL, layers=(Layer(Attention(1, 1, 4, 0.5), experts=Experts(3, 2, 10, bias=True), rope=Rope(4)),))


@pytest.mark.parametrize("spec", [replace(SMALL, layers=SMALL.layers[:1]), MIXTURE], ids=["dense", "experts"])
def test_a_prompt_is_its_tokens(spec: Spec) -> None:
    """Nine tokens at once take other kernels (the tensor cores' product, attention by tokens, experts by group) and give the bits of one
    token alone, however a step is cut."""
    model, ids = made(spec, "int4", "f16"), np.arange(9, dtype=np.int32)
    logits = []
    for tokens in (256, 4):
        with placed(model, Share("cuda:0", 1, tokens)) as there:
            text = there.cache.sequence()
            logits.append(there.runner.run(Batch.of(text, ids)).logits.copy())
            text.truncate(8)
            logits.append(there.runner.run(Batch.of(text, ids[8:])).logits.copy())
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])


def test_kernels_that_take_two_operations_give_the_bits_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(Attention(2, 1, 32, 32**-0.5), Mlp(10), rope=Rope(32))
    model = made(replace(SMALL, layers=(layer,)), "int4", "f16")
    found = []
    for fused in (fuse.fuse, lambda plan, integers, **joined: fuse.fuse(plan, integers)):
        monkeypatch.setattr(run, "fuse", fused)
        with placed(model, Share("cuda:0", 1)) as there:
            found.append(read(there, IDS[:1] % 9).logits.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("first", ["reference", "cuda:0"])
def test_in_parts(first: str) -> None:
    """Layers here and on the GPU, or one GPU as two; a text in pieces; what taps show of either part; a past that comes back."""
    model = made(SMALL, "int8", "f16", taps=("residual",))
    expected = read(model, IDS % 9)
    with placed(model, Share(first, 1, 1), Share("cuda:0", 1, 1)) as there:
        text = there.cache.sequence()
        found = there.runner.run(Batch.of(text, IDS % 9, "all"))
        assert apart(found.logits, expected.logits) < BOUND
        assert found.taps.keys() == expected.taps.keys() and len(found.taps) == 3
        for name, values in expected.taps.items():
            np.testing.assert_allclose(found.taps[name], values, atol=1e-4)
        np.testing.assert_allclose(text.keys(1), model.cache.keys(1, 0).swapaxes(2, 3).reshape(1, 256, 4)[:, :2], atol=2e-3)


def test_nan_is_told_as_elsewhere() -> None:
    spec = replace(SMALL, layers=SMALL.layers[:1])
    model = made(spec, "int8", "f16")
    model.weights["layers.0.attention_norm"].vector()[3] = np.nan
    lines = []
    for device in ("reference", "cuda:0"):
        with placed(model, Share(device, 1)) as there, pytest.raises(NumericalError) as error:
            there.runner.run(Batch.of(there.cache.sequence(), IDS[:1] % 9, "none"))
        lines.append(str(error.value))
    assert lines[0] == lines[1]
