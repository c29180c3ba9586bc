"""Whole models on a simulated GPU against the reference backend: in one piece and in parts, a prompt, then token by token."""

from __future__ import annotations

import numpy as np
import pytest

from devices import ARCHS, Batch, Share, apart, golden, opened, placed, steps

TOKENS, PROMPT = 12, 10
"""The simulator takes a second for some tokens: a prompt, and the last two one by one."""
CASES = {
    "llama": ("int8", "f16"),
    "gpt2": ("int4", "f32"),
    "falcon-alibi": ("int8", "f16"),
    "gemma2": ("int4_offset", "f16"),
    "gemma3": ("none", "f32"),
    "mpt": ("int4", "f16"),
    "gpt_oss": ("int4", "f16"),
    "mixtral": ("int8", "f32"),
}
"""Architectures that between them have every operation, and with which weights and cache they are run."""
BOUND = {"none": 2e-5, "int8": 0.02, "int4": 0.02, "int4_offset": 0.02}
"""Of log-probabilities: the order of float32 sums, and with int8 activations a code that falls on the other side of a half."""


@pytest.mark.parametrize("variant", CASES)
def test_a_model(variant: str) -> None:
    quantization, kv = CASES[variant]
    ids = golden(variant)[0][:TOKENS]
    with opened(ARCHS / variant, TOKENS, quantization, kv=kv) as model:
        expected = model.logits(ids)
        with placed(model, Share("cuda:0", len(model.plan.cache))) as there:
            found = steps(there, ids, PROMPT)
            assert apart(found, expected) < BOUND[quantization]
            text = there.cache.sequence()
            whole = there.runner.run(Batch.of(text, ids, "all"))
            np.testing.assert_array_equal(whole.logits, found, "a token's numbers depend on what is computed with it")
            order = np.lexsort((np.broadcast_to(np.arange(found.shape[1]), found.shape), -found))
            np.testing.assert_array_equal(whole.top_ids, order[:, : whole.top_ids.shape[1]])
            np.testing.assert_allclose(whole.logsumexp, np.log(np.exp(found.astype(np.float64)).sum(-1)), rtol=1e-6)
