"""Qwen3-MoE: Qwen3 with experts in the MLP's place."""

from llmcli.models import limits
from llmcli.models.arch import llama, qwen2_moe, qwen3
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"qwen3_moe": "Qwen3MoeForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
NAMES = {**qwen2_moe.NAMES, **{name: qwen3.NAMES[name] for name in ("layers.{i}.query_norm", "layers.{i}.key_norm")}}


def spec(cfg: Config) -> Spec:
    cfg.defaults(max_position_embeddings=32768, sliding_window=4096, num_experts_per_tok=8)
    cfg.defaults(num_attention_heads=32, num_key_value_heads=4, moe_intermediate_size=768, intermediate_size=6144)
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    window = window if cfg.flag("use_sliding_window", default=False) else 0
    cfg.skip("max_window_layers")  # the original does not look at it
    plain = llama.with_attention(llama.spec(cfg), qk_norm="head", window=window)
    return qwen2_moe.with_experts(cfg, plain, qwen2_moe.experts(cfg, 128))


_NAMED = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "torch_dtype": "bfloat16", "num_hidden_layers": 3}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 36, "decoder_sparse_step": 2, "norm_topk_prob": True}
TINY = {"qwen3_moe": {**llama.TINY["llama-linear"], **_NAMED, **_EXPERTS, "rope_scaling": None, "use_sliding_window": False}}
