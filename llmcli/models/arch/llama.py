"""Llama 1 to 3 and what copies them (SmolLM2, ...): RMS norms, rotary positions, gated MLP, grouped queries."""

from dataclasses import replace
from typing import Any

from llmcli.models import limits, rope
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import concat, copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"llama": "LlamaForCausalLM"}
PREFIX = "model."
IGNORED = (".rotary_emb.inv_freq",)

_LAYER = "model.layers.{i}"
NAMES = {
    "embedding": copy("model.embed_tokens.weight"),
    "layers.{i}.attention_norm": copy(f"{_LAYER}.input_layernorm.weight"),
    "layers.{i}.qkv": concat(*(f"{_LAYER}.self_attn.{x}_proj.weight" for x in "qkv")),
    "layers.{i}.qkv_bias": concat(*(f"{_LAYER}.self_attn.{x}_proj.bias" for x in "qkv")),
    "layers.{i}.attention_out": copy(f"{_LAYER}.self_attn.o_proj.weight"),
    "layers.{i}.attention_out_bias": copy(f"{_LAYER}.self_attn.o_proj.bias"),
    "layers.{i}.mlp_norm": copy(f"{_LAYER}.post_attention_layernorm.weight"),
    "layers.{i}.gate_up": concat(f"{_LAYER}.mlp.gate_proj.weight", f"{_LAYER}.mlp.up_proj.weight"),
    "layers.{i}.gate_up_bias": concat(f"{_LAYER}.mlp.gate_proj.bias", f"{_LAYER}.mlp.up_proj.bias"),
    "layers.{i}.down": copy(f"{_LAYER}.mlp.down_proj.weight"),
    "layers.{i}.down_bias": copy(f"{_LAYER}.mlp.down_proj.bias"),
    "final_norm": copy("model.norm.weight"),
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    heads = cfg.count("num_attention_heads", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT, default=2048)
    size = cfg.count("head_dim", most=limits.HEAD_SIZE) if cfg.has("head_dim") else head_size(hidden, heads)
    bias = cfg.flag("attention_bias", default=False)
    cfg.expect("rope_interleaved", False)
    layer = Layer(
        Attention(
            heads=heads,
            kv_heads=cfg.count("num_key_value_heads", most=limits.HEADS, default=heads),
            head_size=size,
            scale=size**-0.5,
            bias=bias,
            out_bias=bias,
        ),
        Mlp(
            size=cfg.count("intermediate_size", most=limits.WIDTH),
            activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="silu"),
            bias=cfg.flag("mlp_bias", default=False),
        ),
        rope=rope.read(cfg, size, context),
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("rms", cfg.number("rms_norm_eps", low=0, high=1, default=1e-6)),
        layers=(layer,) * cfg.count("num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=False),
    )


def with_attention(spec: Spec, **changes: Any) -> Spec:
    """The spec with these fields of every layer's attention changed."""
    return replace(spec, layers=tuple(replace(x, attention=replace(x.attention, **changes)) for x in spec.layers))


_TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 67,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def _scaled(**rope_scaling: Any) -> dict[str, Any]:
    return {**_TINY, "rope_scaling": rope_scaling}


_RAMP = {"low_freq_factor": 1.0, "high_freq_factor": 2.0}
_LISTS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.5 + i / 2 for i in range(8)]}
_TIED = {"tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": None}
_LONG = {"num_hidden_layers": 3, "max_position_embeddings": 300, "torch_dtype": "bfloat16"}
TINY = {
    "llama": {**_TINY, **_LONG, "attention_bias": True, "mlp_bias": True},
    "llama-tied": {**_TINY, **_TIED},
    "llama-linear": _scaled(type="linear", factor=3.0),
    "llama-dynamic": {**_scaled(rope_type="dynamic", factor=4.0), "max_position_embeddings": 16},
    "llama-yarn": _scaled(rope_type="yarn", factor=3.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5),
    "llama-llama3": _scaled(rope_type="llama3", factor=8.0, original_max_position_embeddings=16, **_RAMP),
    "llama-longrope": _scaled(rope_type="longrope", original_max_position_embeddings=16, **_LISTS),
}
