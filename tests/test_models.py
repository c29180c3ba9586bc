"""From spec to plan: the spec's JSON, rotary kinds, plans as text, names of tensors."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest

from llmcli.errors import ContextOverflow, CorruptFile, InternalError
from llmcli.models import alibi, architectures, decoder, limits, names, rope
from llmcli.models.arch import llama
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Norm, Rope, Spec

VARIANTS = {variant: data for module in architectures.every() for variant, data in module.TINY.items()}


def described(**changes: Any) -> Spec:
    return architectures.describe({**llama.TINY["llama"], **changes})[0]


# Spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_round_trip(variant: str) -> None:
    spec, _ = architectures.describe(VARIANTS[variant])
    assert Spec.from_json(spec.to_json()) == spec


def test_equal_layers_are_stored_once() -> None:
    spec = described(num_hidden_layers=200)
    assert len(spec.to_json()) < 2000
    assert len(Spec.from_json(spec.to_json()).layers) == 200


def _damaged() -> list[str]:
    good = json.loads(described().to_json())
    layer = good["layers"][0]["layer"]
    changes: list[dict[str, Any]] = [
        {"vocab": 0},
        {"vocab": "67"},
        {"hidden": 10**10},
        {"context": -1},
        {"surprise": 1},
        {"layers": []},
        {"layers": [{"times": 10**9, "layer": layer}]},
        {"layers": [{"times": 1, "layer": {**layer, "mlp": None}}]},
        {"layers": [{"times": 1, "layer": {**layer, "residual": "diagonal"}}]},
        {"layers": [{"times": 1, "layer": {**layer, "attention": {**layer["attention"], "kv_heads": 3}}}]},
        {"layers": [{"times": 1, "layer": {**layer, "rope": {**layer["rope"], "size": 5}}}]},
        {"norm": {"kind": "rms", "eps": 10**400, "bias": False}},
        {"position_offset": 3},
    ]
    return ["", "[]", "{", "null", *(json.dumps({**good, **change}) for change in changes), described().to_json().replace("0.25", "NaN")]


@pytest.mark.parametrize("text", _damaged(), ids=range(len(_damaged())))
def test_damaged_specs_are_refused(text: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        Spec.from_json(text)
    assert caught.value.code == 3 and str(caught.value).isprintable()


# Rotary positions


def frequencies(length: int, **scaling: Any) -> tuple[float, ...]:
    data = {**llama.TINY["llama"], "max_position_embeddings": 64, "rope_theta": 10000.0, "rope_scaling": scaling}
    found = architectures.describe(data)[0].layers[0].rope
    assert found is not None
    return rope.frequencies(found, length)


PLAIN = [10000 ** (-i / 8) for i in range(8)]


def test_plain_frequencies() -> None:
    assert frequencies(64, rope_type="default") == pytest.approx(PLAIN, rel=2e-7)


def test_linear_divides_all() -> None:
    assert frequencies(64, type="linear", factor=4.0) == pytest.approx([f / 4 for f in PLAIN], rel=2e-7)


def test_dynamic_is_plain_up_to_its_context_and_stretches_beyond() -> None:
    assert frequencies(64, type="dynamic", factor=2.0) == pytest.approx(PLAIN, rel=2e-7)
    longer = frequencies(128, type="dynamic", factor=2.0)
    base = 10000 * (2 * 128 / 64 - 1) ** (16 / 14)
    assert longer == pytest.approx([base ** (-i / 8) for i in range(8)], rel=2e-7)
    assert longer[0] == 1.0 and longer[-1] == pytest.approx(PLAIN[-1] / 3, rel=1e-6)


def test_llama3_keeps_high_frequencies_and_divides_low_ones() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = frequencies(64, **scaling, original_max_position_embeddings=32)
    assert found[0] == 1.0  # 32 / 2 pi = 5.1 turns: more than 4
    assert PLAIN[1] / 8 < found[1] < PLAIN[1]  # 1.6 turns: between
    assert found[2:] == pytest.approx([f / 8 for f in PLAIN[2:]], rel=2e-7)


def test_yarn_ramps_and_magnifies() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    found = frequencies(64, **scaling, beta_fast=2.0, beta_slow=0.25)
    assert found[0] == 1.0 and found[-1] == pytest.approx(PLAIN[-1] / 4, rel=2e-7)
    ratios = [round(f / p, 6) for f, p in zip(found, PLAIN, strict=True)]
    assert ratios == sorted(ratios, reverse=True)
    assert rope.attention_factor(Rope(16, scaling="yarn", factor=4.0)) == pytest.approx(0.1 * math.log(4) + 1)
    assert rope.attention_factor(Rope(16, scaling="yarn", factor=4.0, attention_factor=1.5)) == 1.5
    own = described(rope_scaling={**scaling, "mscale": 1.0, "mscale_all_dim": 1.0}).layers[0].rope
    assert own is not None and rope.attention_factor(own) == 1.0


def test_longrope_chooses_its_list_by_the_context() -> None:
    lists = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = {"type": "longrope", "original_max_position_embeddings": 32, **lists}
    assert frequencies(32, **scaling) == pytest.approx(PLAIN, rel=2e-7)
    assert frequencies(33, **scaling) == pytest.approx([f / 2 for f in PLAIN], rel=2e-7)
    assert rope.attention_factor(Rope(16, scaling="longrope", factor=2.0, original_context=32)) == pytest.approx(math.sqrt(1.2))


@pytest.mark.parametrize(
    "damage", [{"scaling": "spiral"}, {"base": 0.0}, {"scaling": "linear", "factor": 0.0}, {"original_context": 0}, {"base": 1e-320}]
)
def test_impossible_rotations_from_a_packed_file(damage: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        rope.frequencies(replace(Rope(16, scaling="dynamic", factor=2.0, original_context=16), **damage), 64)


# ALiBi


def test_slopes_are_those_of_the_paper() -> None:
    assert alibi.slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi.slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)  # of two heads, then the first of four
    assert alibi.slopes(4, 16.0) == tuple(16.0**-i for i in range(1, 5))


# Plans


def test_a_plan_as_text() -> None:
    attention = Attention(heads=2, kv_heads=1, head_size=4, scale=0.5, qk_norm="head", window=3)
    spec = Spec(vocab=11, hidden=6, context=32, norm=Norm(), layers=(Layer(attention, Mlp(5), rope=Rope(4)),))
    assert str(decoder.plan(spec, 32)).splitlines() == [
        "   0  x = embed(embedding)  # embedding",
        "   1  normed = norm(x; layers.0.attention_norm, -; kind=rms, eps=1e-05, heads=1)  # layers.0.attention_norm",
        "   2  qkv = linear(normed; layers.0.qkv, -)  # layers.0.qkv",
        "   3  qkv[0:8] = norm(qkv[0:8]; layers.0.query_norm, -; kind=rms, eps=1e-05, heads=2)  # layers.0.query_norm",
        "   4  qkv[8:12] = norm(qkv[8:12]; layers.0.key_norm, -; kind=rms, eps=1e-05, heads=1)  # layers.0.key_norm",
        "   5  qkv[0:12] = rope(qkv[0:12]; heads=3, head_size=4, size=4, interleaved=False, frequencies=<2>, factor=1)  # layers.0.rope",
        "   6  - = cache_write(qkv[8:12], qkv[12:16]; layer=0)  # layers.0.cache_write",
        "   7  attended = attention(qkv[0:8]; -; layer=0, heads=2, kv_heads=1, head_size=4, scale=0.5, window=3, softcap=0, slopes=<0>)"
        "  # layers.0.attention",
        "   8  branch = linear(attended; layers.0.attention_out, -)  # layers.0.attention_out",
        "   9  x = add(x, branch)  # layers.0.attention_add",
        "  10  normed = norm(x; layers.0.mlp_norm, -; kind=rms, eps=1e-05, heads=1)  # layers.0.mlp_norm",
        "  11  inner = linear(normed; layers.0.gate_up, -)  # layers.0.gate_up",
        "  12  inner[0:5] = activation(inner[0:5]; kind=silu)  # layers.0.activation",
        "  13  inner[0:5] = multiply(inner[0:5], inner[5:10])  # layers.0.multiply",
        "  14  branch = linear(inner[0:5]; layers.0.down, -)  # layers.0.down",
        "  15  x = add(x, branch)  # layers.0.mlp_add",
        "  16  wanted = select_rows(x)  # select",
        "  17  wanted = norm(wanted; final_norm, -; kind=rms, eps=1e-05, heads=1)  # final_norm",
        "  18  logits = linear(wanted; embedding, -)  # head",
        "  19  - = top(logits)  # top",
    ]


def test_every_option_of_a_spec_makes_a_plan() -> None:
    attention = Attention(2, 2, 4, 0.5, bias=True, out_bias=True, qk_norm="each", softcap=30.0, alibi=(0.5, 0.25), sinks=True, clip=6.0)
    experts = Experts(
        count=4, chosen=2, size=5, softmax="after", bias=True, router_bias=True, limit=7.0, shift=1.0, shared=6, shared_gate=True
    )
    layers = (
        Layer(attention, experts=experts, residual="parallel", shared_norm=True),
        Layer(replace(attention, qk_norm="full"), Mlp(7, "relu2", gated=False, bias=True), residual="parallel", post_norms=True),
        Layer(attention, Mlp(7), pre_norms=False, post_norms=True),
    )
    spec = Spec(11, 8, 32, Norm("layer", bias=True), layers, tied=True, head_bias=True, positions=34, position_offset=2)
    spec = replace(spec, embedding_scale=2.0, logit_scale=0.5, logit_softcap=30.0, final_norm=False, embedding_norm=True)
    spec = replace(spec, residual_scale=0.5)
    assert Spec.from_json(spec.to_json()) == spec
    plan = decoder.plan(spec, 32)
    kinds = [op.kind for op in plan.ops]
    assert (
        kinds[:6] == ["embed", "scale", "position_add", "norm", "norm", "linear"]
        and kinds[6] == "clip"
        and kinds[-5:] == ["select_rows", "linear", "scale", "softcap", "top"]
    )
    assert "layers.0.mlp_norm" not in plan.weights and "layers.1.mlp_norm" in plan.weights
    assert "embedding_norm_bias" in plan.weights
    assert "layers.0.mlp_post_norm" not in plan.weights and {"layers.1.attention_post_norm", "layers.1.mlp_post_norm"} <= set(plan.weights)
    assert "layers.2.mlp_norm" not in plan.weights and "layers.2.mlp_post_norm" in plan.weights
    assert plan.weights["layers.0.router"].kind == plan.weights["layers.0.shared_gate"].kind == "router"
    assert plan.weights["layers.0.shared.gate_up"].shape == (12, 8)
    assert kinds.count("scale") == 1 + 2 * 3 + 1 and kinds.count("scale_rows") == 1
    bare = decoder.plan(replace(spec, norm=Norm("layer", weight=False), layers=(replace(spec.layers[0], experts=None, mlp=Mlp(7)),)), 32)
    assert not [name for name in bare.weights if name.endswith(("attention_norm", "embedding_norm", "final_norm"))]
    assert plan.weights["layers.0.experts_up"].shape == (4, 10, 8) and plan.weights["layers.0.experts_up_bias"].shape == (4, 10)
    assert plan.weights["layers.0.query_norm"].shape == plan.weights["layers.1.key_norm"].shape == (8,)
    assert [b.rows for b in plan.buffers if b.name in ("x", "logits")] == ["tokens", "outputs"]


def test_parameters_count_shared_weights_once() -> None:
    data = {**llama.TINY["llama"], "num_hidden_layers": 1, "attention_bias": False, "mlp_bias": False}
    layer = 2 * 40 + (64 + 2 * 32) * 40 + 40 * 64 + 3 * 52 * 40
    for tied, copies in ((True, 1), (False, 2)):
        spec, _ = architectures.describe({**data, "tie_word_embeddings": tied})
        assert decoder.plan(spec, 16).parameters == copies * 67 * 40 + layer + 40


def test_a_context_beyond_learned_positions_is_refused_with_counts() -> None:
    spec, _ = architectures.describe(VARIANTS["gpt2"])
    with pytest.raises(ContextOverflow, match="a context of 1,000 tokens: the model has 40 positions"):
        decoder.plan(spec, 1000)


def test_windows_follow_the_config() -> None:
    data = {**VARIANTS["qwen2"], "num_hidden_layers": 4}

    def windows(**changes: Any) -> list[int]:
        return [x.attention.window for x in architectures.describe({**data, **changes})[0].layers]

    assert windows() == [0, 9, 9, 9]
    assert windows(use_sliding_window=False) == [0, 0, 0, 0]
    assert windows(sliding_window=None) == [0, 0, 0, 0]
    assert windows(layer_types=["sliding_attention", "full_attention"] * 2) == [9, 0, 9, 0]
    with pytest.raises(CorruptFile, match="layer_types"):
        windows(layer_types=["full_attention"])


# Names


def test_sources_name_each_tensor_once() -> None:
    for variant, data in VARIANTS.items():
        spec, module = architectures.describe(data)
        found = names.sources(spec, decoder.plan(spec, 8), module)
        used = [name for source in found.values() for name in source.names]
        assert len(used) == len(set(used)), variant
        assert all(source.transform in names.TRANSFORMS for source in found.values())
        assert not any("{" in name for name in used)


def test_a_prefix_may_be_left_off() -> None:
    spec, module = architectures.describe(VARIANTS["gpt2"])
    plan = decoder.plan(spec, 8)
    assert names.sources(spec, plan, module, ["wte.weight"])["layers.1.qkv"].names == ("h.1.attn.c_attn.weight",)
    assert names.sources(spec, plan, module, ["transformer.wte.weight"])["final_norm"].names == ("transformer.ln_f.weight",)


def test_experts_are_listed_one_after_the_other() -> None:
    spec, module = architectures.describe(VARIANTS["mixtral"])
    source = names.sources(spec, decoder.plan(spec, 8), module)["layers.1.experts_up"]
    assert source.transform == "stack_concat" and len(source.names) == 10
    assert source.names[:2] == tuple(f"model.layers.1.block_sparse_moe.experts.0.{w}.weight" for w in ("w1", "w3"))
    assert names.ignored(spec, module) == (".rotary_emb.inv_freq",)


def test_a_tied_head_in_the_file_is_ignored() -> None:
    spec, module = architectures.describe(VARIANTS["llama-tied"])
    assert "lm_head.weight" in names.ignored(spec, module)


def test_a_weight_without_a_source_is_our_fault() -> None:
    spec, module = architectures.describe(VARIANTS["gpt2"])
    plan = decoder.plan(replace(spec, head_bias=True), 8)
    with pytest.raises(InternalError, match="head_bias"):
        names.sources(spec, plan, module)


def test_the_largest_description_is_planned_soon() -> None:
    """A few hundred bytes of a packed file can ask for this; that the weights are missing is found only then."""
    layer = Layer(Attention(1, 1, limits.HEAD_SIZE, 1.0), Mlp(8), rope=Rope(limits.HEAD_SIZE))
    start = time.process_time()
    decoder.plan(Spec(8, 8, 512, Norm(), (layer,) * limits.LAYERS), 512)
    assert time.process_time() - start < 20
