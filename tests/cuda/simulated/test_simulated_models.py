"""Whole models on a simulated GPU against the reference backend: a prompt, then a token by itself; in one piece and in parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pytest
from devices import SPECS, apart, made, placed, read

from llmcli.backends.backend import Batch
from llmcli.errors import NumericalError
from llmcli.offload.place import Share

CASES = {"grouped": ("int8", "f16"), "capped": ("int4_offset", "f32"), "slopes": ("f16", "f32"), "experts": ("int4", "f16")}
"""With which weights and cache."""
BOUND = 1e-4
"""Of log-probabilities: the order of float32 sums. Few tokens, so that no activation falls on the other side of a rounding to int8."""
IDS = np.array([3, 17, 30, 5], np.int32)


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
