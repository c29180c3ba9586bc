"""Every architecture against the original implementation, on tiny random models (tools/make_golden.py made them).

This proves the config reader, the names, the conversion, the plan and the operations together: a wrong one shows in
the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from arch_models import ARCHS, Model, opened
from llmcli.errors import UnsupportedModel
from llmcli.models import architectures, config

VARIANTS = {variant: data for module in architectures.every() for variant, data in module.TINY.items()}


def golden(variant: str) -> tuple[np.ndarray, np.ndarray]:
    """ids i32 [T] and the original's logits f32 [T, V]."""
    with np.load(ARCHS / variant / "golden.npz") as data:
        return data["ids"], data["logits"]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


@pytest.fixture(params=["reference", "cpu"], scope="module")
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(VARIANTS), scope="module")
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(variant: str, backend_name: str) -> Iterator[Model]:
    """The variant's float model, loaded once for all tests of it."""
    try:
        with opened(ARCHS / variant, len(golden(variant)[0]), name=backend_name) as model:
            yield model
    except UnsupportedModel as error:
        pytest.skip(f"{backend_name}: {error}")


def test_the_original_writes_the_same_model(variant: str) -> None:
    """Our tiny config is in the style of transformers 4, the file in that of 5: both mean the same model."""
    written = config.parse((ARCHS / variant / "config.json").read_bytes())
    assert architectures.describe(written)[0] == architectures.describe(VARIANTS[variant])[0]


def test_float_logits_are_the_originals(variant: str, model: Model) -> None:
    ids, wanted = golden(variant)
    np.testing.assert_allclose(model.logits(ids), wanted, rtol=0, atol=1e-4)


def test_token_by_token_is_all_at_once(variant: str, model: Model) -> None:
    ids, _ = golden(variant)
    whole = model.logits(ids)
    np.testing.assert_allclose(model.logits(ids, steps=len(ids)), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.logits(ids, steps=3), whole, rtol=0, atol=1e-5)


def test_int8_stays_close(variant: str, backend_name: str) -> None:
    """Mean KL divergence from the original's distribution. Tiny random models are harder on it than trained ones."""
    ids, wanted = golden(variant)
    try:
        with opened(ARCHS / variant, len(ids), "int8", backend_name, kv="f16") as model:
            found = log_probabilities(model.logits(ids))
    except UnsupportedModel as error:
        pytest.skip(f"{backend_name}: {error}")
    right = log_probabilities(wanted)
    divergence = (np.exp(right) * (right - found)).sum(-1)
    assert divergence.mean() < 0.01
