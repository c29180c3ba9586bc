"""GPT-OSS: experts with biases and limited gates, every other layer's attention banded, sinks, YaRN, 4-bit weights."""

from dataclasses import replace
from typing import Any

from llmcli.models import limits
from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.names import Source, both, copy
from llmcli.models.spec import Experts, Spec

TYPES = {"gpt_oss": "GptOssForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_LAYER = "model.layers.{i}"
_EXPERTS = f"{_LAYER}.mlp.experts"


def _matrices(name: str, kind: str, alternating: str) -> Source:
    """Experts' matrices, as floats or in 4 bits."""
    packed = Source(f"mxfp4{alternating}", (f"{_EXPERTS}.{name}_blocks", f"{_EXPERTS}.{name}_scales"))
    return Source(kind, (f"{_EXPERTS}.{name}",), otherwise=packed)


NAMES = {
    **llama.NAMES,
    "layers.{i}.sinks": copy(f"{_LAYER}.self_attn.sinks"),
    **both("layers.{i}.router", f"{_LAYER}.mlp.router"),
    "layers.{i}.experts_up": _matrices("gate_up_proj", "transpose_alternating", "_alternating"),
    "layers.{i}.experts_up_bias": Source("alternating", (f"{_EXPERTS}.gate_up_proj_bias",)),
    "layers.{i}.experts_down": _matrices("down_proj", "transpose_each", ""),
    "layers.{i}.experts_down_bias": copy(f"{_EXPERTS}.down_proj_bias"),
}
_YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_YARN |= {"original_max_position_embeddings": 4096}


def spec(cfg: Config) -> Spec:
    cfg.defaults(head_dim=64, num_attention_heads=64, num_key_value_heads=8, attention_bias=True, max_position_embeddings=131072)
    cfg.defaults(sliding_window=128, rms_norm_eps=1e-5)
    if not cfg.has("rope_scaling", "rope_parameters"):
        cfg.defaults(rope_theta=150000.0, rope_scaling=_YARN)
    cfg.expect("hidden_act", "silu")  # its experts compute x * sigmoid(1.702 x)
    cfg.expect("swiglu_alpha", 1.702)
    stored = cfg.section("quantization_config")
    stored.word("quant_method", choices={"mxfp4": "", "none": ""}, default="none")
    stored.skip("modules_to_not_convert")  # which tensors are packed shows in their names
    cfg.skip("initial_context_length")  # rope_scaling says it again
    plain = llama.with_attention(llama.spec(cfg), sinks=True)
    count = cfg.count("num_local_experts", "num_experts", most=limits.EXPERTS, default=128)
    limit = cfg.number("swiglu_limit", low=1e-6, high=1e9, default=7.0)
    experts = Experts(
        count=count,
        chosen=cfg.count("num_experts_per_tok", "experts_per_token", most=count, default=4),
        size=cfg.count("intermediate_size", most=limits.WIDTH),
        activation="quick_gelu",
        softmax="after",
        bias=True,
        router_bias=True,
        limit=limit,
        shift=1.0,
    )
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=len(plain.layers))
    windows = listed or [0 if i % 2 else window for i in range(len(plain.layers))]
    layers = [
        replace(layer, mlp=None, experts=experts, attention=replace(layer.attention, window=width))
        for layer, width in zip(plain.layers, windows, strict=True)
    ]
    return replace(plain, layers=tuple(layers))


_TINY: dict[str, Any] = {
    **llama.TINY["llama-yarn"],
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "swiglu_limit": 1.5,
    "attention_bias": True,
    "torch_dtype": "bfloat16",
}
_PLAIN = {**_TINY, "rope_scaling": {**_TINY["rope_scaling"], "truncate": False}}
TINY = {"gpt_oss": _PLAIN, "gpt_oss-mxfp4": {**_PLAIN, "num_hidden_layers": 2, "quantization_config": {"quant_method": "mxfp4"}}}
