"""Every architecture against the original implementation, on tiny random models (tools/make_golden.py made them).

This proves the config reader, the names, the conversion, the plan and the operations together: a wrong one shows in
the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arch_models import ARCHS, Model, opened
from llmcli.errors import UnsupportedModel
from llmcli.models import architectures, config
from llmcli.models.spec import Spec

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
    np.testing.assert_array_equal(model.logits(ids, steps=len(ids)), whole)
    np.testing.assert_array_equal(model.logits(ids, steps=3), whole)


def test_int8_stays_close(variant: str, backend_name: str) -> None:
    """Mean KL divergence from the original's distribution. Tiny random models are harder on it than trained ones."""
    ids, wanted = golden(variant)
    try:
        with opened(ARCHS / variant, len(ids), "int8", backend_name, kv="int16") as model:
            found = log_probabilities(model.logits(ids))
    except UnsupportedModel as error:
        pytest.skip(f"{backend_name}: {error}")
    right = log_probabilities(wanted)
    divergence = (np.exp(right) * (right - found)).sum(-1)
    assert divergence.mean() < 0.01


def each(part: str = "", **fields: Callable[[Any], Any]) -> Callable[[Spec], Spec]:
    """A change of fields of every layer, or of that part of it where there is one."""

    def change(spec: Spec) -> Spec:
        layers = []
        for layer in spec.layers:
            record = getattr(layer, part) if part else layer
            new = record and replace(record, **{name: value(getattr(record, name)) for name, value in fields.items()})
            layers.append(replace(layer, **{part: new}) if part else new)
        return replace(spec, layers=tuple(layers))

    return change


def weighed_otherwise(spec: Spec) -> Spec:
    """Experts' weights that sum to 1 do not, and the other way round."""
    layers = []
    for layer in spec.layers:
        e = layer.experts
        summed = e and (e.normalise or e.softmax == "after")
        layers.append(replace(layer, experts=e and replace(e, softmax="before", normalise=not summed)))
    return replace(spec, layers=tuple(layers))


MISTAKES: dict[str, Callable[[Spec], Spec]] = {
    "scale": each("attention", scale=lambda x: 1.1 * x),
    "no window": each("attention", window=lambda x: 0),
    "a window one longer": each("attention", window=lambda x: x and x + 1),
    "no cap": each("attention", softcap=lambda x: 0.0),
    "no slopes": each("attention", alibi=lambda x: ()),
    "slopes in another order": each("attention", alibi=lambda x: x[::-1]),
    "no clipping": each("attention", clip=lambda x: 0.0),
    "no rotation": each(rope=lambda x: None),
    "the other pairs": each("rope", interleaved=lambda x: not x),
    "another base": each("rope", base=lambda x: 2 * x),
    "no rotary scaling": each("rope", scaling=lambda x: ""),
    "the other gelu": each("mlp", activation=lambda x: {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}.get(x, x)),
    "an expert more": each("experts", chosen=lambda x: x + 1),
    "experts weighed otherwise": weighed_otherwise,
    "another activation of experts": each("experts", activation=lambda x: "gelu"),
    "no limit of gates": each("experts", limit=lambda x: 0.0),
    "ups as they are": each("experts", shift=lambda x: 0.0),
    "the residual as it is": lambda spec: replace(spec, residual_scale=1.0),
    "logits as they are": lambda spec: replace(spec, logit_scale=1.0),
    "embeddings as they are": lambda spec: replace(spec, embedding_scale=1.0),
    "no cap of logits": lambda spec: replace(spec, logit_softcap=0.0),
    "the layers' order": lambda spec: replace(spec, layers=spec.layers[::-1]),
    "positions from 0": lambda spec: replace(spec, position_offset=0),
    "the other norm": lambda spec: replace(spec, norm=replace(spec.norm, kind="rms" if spec.norm.kind == "layer" else "layer")),
}


def test_no_mistake_would_go_unseen(variant: str) -> None:
    """Each field that a family uses is seen in the logits of its tiny model: a wrong one fails the comparison above."""
    ids, wanted = golden(variant)
    spec = architectures.describe(VARIANTS[variant])[0]
    for name, mistake in MISTAKES.items():
        if mistake(spec) != spec:
            with opened(ARCHS / variant, len(ids), change=mistake) as model:
                assert np.abs(model.logits(ids) - wanted).max() > 5e-4, name
