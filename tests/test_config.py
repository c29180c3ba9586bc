"""The strict reader of config.json, hostile files, and the list of architectures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmcli.errors import CorruptFile, ModelFileError, UnsupportedModel
from llmcli.models import architectures, config, decoder
from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Rope, Spec

VARIANTS = {variant: data for module in architectures.every() for variant, data in module.TINY.items()}


def described(**changes: Any) -> Spec:
    return architectures.describe({**llama.TINY["llama"], **changes})[0]


def one_line(error: ModelFileError) -> str:
    assert error.code == 3
    line = str(error)
    assert len(line) < 400 and line.isprintable()
    return line


def test_styles_of_both_transformers_versions_read_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = described(rope_theta=5e5, rope_scaling=scaling, torch_dtype="float16")
    data = {k: v for k, v in llama.TINY["llama"].items() if k not in ("rope_theta", "torch_dtype")}
    new, _ = architectures.describe({**data, "rope_parameters": {**scaling, "rope_theta": 5e5}, "dtype": "float16"})
    assert new == old
    assert old.layers[0].rope == Rope(16, 5e5, scaling="linear", factor=2.0, original_context=300)


def test_unread_fields_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match='"logit_spice"'):
        described(logit_spice=3)
    with pytest.raises(UnsupportedModel, match="rope_scaling.surprise"):
        described(rope_scaling={"type": "linear", "factor": 2.0, "surprise": 1})
    with pytest.raises(UnsupportedModel, match="quantization_config"):
        described(quantization_config={"bits": 4})


def test_harmless_null_and_allowed_fields_pass() -> None:
    plain = described()
    assert described(auto_map={"AutoModel": "code.Model"}, use_cache=False, bos_token_id=[1], sliding_window=None) == plain
    assert architectures.describe({**llama.TINY["llama"], "logit_spice": 3}, allow={"logit_spice"})[0] == plain


PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "configs.json").read_text())
"""Well-known models: the fields of their config.json, and what is known of them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_well_known_models_are_read(name: str) -> None:
    """No field of them is refused, and the parameters are as many as they are known for."""
    spec, _ = architectures.describe(PUBLISHED[name]["config"])
    layer = spec.layers[-1]
    found = {
        "heads": layer.attention.heads,
        "kv_heads": layer.attention.kv_heads,
        "head_size": layer.attention.head_size,
        "rotated": layer.rope.size if layer.rope else 0,
        "window": layer.attention.window,
        "tied": spec.tied,
        "parameters": decoder.plan(spec, min(spec.context, 4096)).parameters,
    }
    assert found == PUBLISHED[name]["expected"]


HOSTILE = [
    *({"hidden_size": value} for value in (0, -1, 10**12, "64", 64.0, True, [64], {"a": 1}, 10**4000)),
    *({"num_hidden_layers": value} for value in (0, 10**9, -3)),
    *({"num_attention_heads": value} for value in (0, 3, 10**6)),
    {"num_attention_heads": 50, "head_dim": None},
    {"num_key_value_heads": 3},
    {"vocab_size": 10**8},
    {"head_dim": 15},
    {"max_position_embeddings": 1e3},
    *({"rms_norm_eps": value} for value in (-1, 2, "1e-5", None.__class__.__name__, 1e999)),
    *({"rope_theta": value} for value in (0, -5.0, 1e300, "big")),
    *({"rope_scaling": value} for value in ([], "linear", {"type": "spiral"}, {"type": 7}, {"type": "linear"})),
    {"rope_scaling": {"type": "linear", "factor": 0}},
    {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}},
    {"rope_scaling": {"type": "longrope", "factor": 2, "short_factor": [1] * 7, "long_factor": [1] * 8}},
    {"hidden_act": "tanhexp"},
    {"hidden_act": 5},
    {"attention_bias": "yes"},
    {"rope_interleaved": True},
    {"is_encoder_decoder": True},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: str(changes)[:40])
def test_hostile_values_get_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError) as caught:
        described(**changes)
    assert re.search(next(iter(changes)) + "|description|columns are rotated|heads do not divide", one_line(caught.value))


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads"])
def test_missing_fields_are_named(missing: str) -> None:
    with pytest.raises(CorruptFile, match=f"{missing} is missing"):
        described(**{missing: None})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"x": NaN}',
        b'{"x": -Infinity}',
        b'{"x": ' + b"9" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_files_that_are_no_json_object(data: bytes) -> None:
    with pytest.raises(CorruptFile) as caught:
        config.parse(data)
    one_line(caught.value)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(CorruptFile, match="too many"):
        config.parse(b" " * (config.MOST_BYTES + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(VARIANTS)), st.data())
def test_any_value_in_any_field_is_read_or_refused(variant: str, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(VARIANTS[variant])))
    changed = {**VARIANTS[variant], field: data.draw(JSON)}
    try:
        spec, _ = architectures.describe(changed)
        if len(spec.layers) < 10 and spec.context > 8:
            decoder.plan(spec, 8)
    except ModelFileError as error:
        assert error.code == 3


@pytest.mark.parametrize(
    "data",
    [
        {"model_type": "bert", "architectures": ["BertModel"]},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["Strange" * 100]},
        {"architectures": "LlamaForCausalLMx", "model_type": ["x"]},
        {"architectures": [{}], "model_type": None},
        {},
    ],
    ids=range(6),
)
def test_unsupported_architectures_list_the_supported(data: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="unsupported architecture") as caught:
        architectures.describe(data)
    for name in architectures.supported():
        assert name in str(caught.value)


def test_a_config_with_one_of_both_names_is_found() -> None:
    assert architectures.find({"architectures": ["GPT2LMHeadModel"]}).TYPES == {"gpt2": "GPT2LMHeadModel"}
    assert architectures.find({"model_type": "gpt2"}).TYPES == {"gpt2": "GPT2LMHeadModel"}


def test_config_numbers_of_both_kinds_are_read() -> None:
    cfg = Config({"a": 1, "b": 0.5})
    assert (cfg.number("a", low=0, high=2), cfg.number("b", low=0, high=2), cfg.number("c", low=0, high=2, default=9.0)) == (1.0, 0.5, 9.0)
