"""Small trained models with known answers (the folder of test data holds them)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arch_models import opened
from llmcli.backends.backend import Batch


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_greedy_text_and_logits(data_dir: Path, name: str, quantization: str, backend: str) -> None:
    """48 greedy ids in float and int8; float logits within 1e-4 where the answers have them."""
    folder = data_dir / "models" / name
    known = json.loads((folder / "expected.json").read_text())
    wanted = {int(position): np.array(logits) for position, logits in known["logits_at_position"].items()}
    ids = list(known["prompt_ids"])
    with opened(folder, 64, quantization, backend, "f32" if quantization == "none" else "f16") as model:
        sequence = model.cache.sequence()
        fresh = ids
        while len(ids) < len(known["prompt_ids"]) + len(known["greedy_ids"]):
            result = model.runner.run(Batch.of(sequence, np.array(fresh, np.int32)))
            if quantization == "none" and sequence.length - 1 in wanted:
                np.testing.assert_allclose(result.logits[0], wanted.pop(sequence.length - 1), rtol=0, atol=1e-4)
            fresh = [int(result.top_ids[0, 0])]
            ids += fresh
    assert ids[len(known["prompt_ids"]) :] == known["greedy_ids"]
    assert not wanted or quantization != "none"
