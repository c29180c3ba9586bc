"""Qwen2-MoE: Qwen2 with experts in the MLP's place, beside an MLP that every token passes through a gate."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import llama
from llmcli.models.config import ACTIVATIONS, Config
from llmcli.models.names import Source, concat, copy
from llmcli.models.spec import Experts, Spec

TYPES = {"qwen2_moe": "Qwen2MoeForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_MLP = "model.layers.{i}.mlp"
NAMES = {
    **llama.NAMES,
    "layers.{i}.router": copy(f"{_MLP}.gate.weight"),
    "layers.{i}.experts_up": Source("stack_concat", tuple(f"{_MLP}.experts.{{e}}.{x}_proj.weight" for x in ("gate", "up"))),
    "layers.{i}.experts_down": Source("stack", (f"{_MLP}.experts.{{e}}.down_proj.weight",)),
    "layers.{i}.shared.gate_up": concat(f"{_MLP}.shared_expert.gate_proj.weight", f"{_MLP}.shared_expert.up_proj.weight"),
    "layers.{i}.shared.down": copy(f"{_MLP}.shared_expert.down_proj.weight"),
    "layers.{i}.shared_gate": copy(f"{_MLP}.shared_expert_gate.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(max_position_embeddings=32768, sliding_window=4096, num_experts_per_tok=4, intermediate_size=5632)
    cfg.defaults(num_attention_heads=16, num_key_value_heads=16, moe_intermediate_size=1408, shared_expert_intermediate_size=5632)
    cfg.expect("use_mrope", False)
    plain = llama.with_attention(llama.spec(cfg), bias=cfg.flag("qkv_bias", default=True))
    window = cfg.count("sliding_window", least=0, most=limits.CONTEXT, default=0)
    first = cfg.count("max_window_layers", least=0, most=limits.LAYERS, default=28)
    window = window if cfg.flag("use_sliding_window", default=False) else 0
    count = len(plain.layers)
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=count)
    each = listed or [0 if i % 2 or i >= first else window for i in range(count)]
    layers = zip(plain.layers, each, strict=True)
    plain = replace(plain, layers=tuple(replace(x, attention=replace(x.attention, window=w)) for x, w in layers))
    shared = cfg.count("shared_expert_intermediate_size", most=limits.WIDTH)
    return with_experts(cfg, plain, replace(experts(cfg, 60), shared=shared, shared_gate=True))


def experts(cfg: Config, default: int) -> Experts:
    """The experts of Qwen's models. default: how many where the file does not say."""
    count = cfg.count("num_experts", "num_local_experts", most=limits.EXPERTS, default=default)
    return Experts(
        count=count,
        chosen=cfg.count("num_experts_per_tok", most=count),
        size=cfg.count("moe_intermediate_size", most=limits.WIDTH),
        activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="silu"),
        normalise=cfg.flag("norm_topk_prob", default=False),
    )


def with_experts(cfg: Config, spec: Spec, experts: Experts) -> Spec:
    """The spec with the experts in every `decoder_sparse_step`-th layer that is not one of `mlp_only_layers`."""
    step = cfg.count("decoder_sparse_step", most=limits.LAYERS, default=1)
    dense = cfg.indices("mlp_only_layers", below=len(spec.layers))
    layers = [x if i in dense or (i + 1) % step else replace(x, mlp=None, experts=experts) for i, x in enumerate(spec.layers)]
    return replace(spec, layers=tuple(layers))


_NAMED = {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "torch_dtype": "bfloat16", "num_hidden_layers": 3}
_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28}
_LAYERS = {"mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}
TINY = {"qwen2_moe": {**llama.TINY["llama-tied"], **_NAMED, **_EXPERTS, **_LAYERS, "rope_scaling": None}}
