"""Phi-3 and Phi-4: Llama whose queries, keys and values are one matrix, and so are gate and up; LongRoPE; windows."""

from llmcli.models.arch import llama, mistral
from llmcli.models.config import Config
from llmcli.models.names import copy
from llmcli.models.spec import Spec

TYPES = {"phi3": "Phi3ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
NAMES = {
    **llama.NAMES,
    "layers.{i}.qkv": copy("model.layers.{i}.self_attn.qkv_proj.weight"),
    "layers.{i}.gate_up": copy("model.layers.{i}.mlp.gate_up_proj.weight"),
}


def spec(cfg: Config) -> Spec:
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        cfg.expect(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        cfg.expect(name, 1)
    cfg.defaults(num_key_value_heads=None, sliding_window=None, rms_norm_eps=1e-5, max_position_embeddings=4096)
    return mistral.spec(cfg)


_NAMED = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "torch_dtype": "bfloat16", "pad_token_id": 0}
_SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None}
_LISTS = {"short_factor": [1.0 + i / 8 for i in range(6)], "long_factor": [1.5 + i / 2 for i in range(6)]}
_LONG = {"rope_scaling": {"type": "longrope", **_LISTS}, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}
_LONGROPE = {**llama.TINY["llama-linear"], **_NAMED, **_SIZES, **_LONG, "original_max_position_embeddings": 16}
TINY = {
    "phi3": {**llama.TINY["llama-linear"], **_NAMED, **_SIZES, "rope_scaling": None, "sliding_window": 7},
    "phi3-longrope": _LONGROPE,
    "phi3-shortrope": {**_LONGROPE, "num_hidden_layers": 1},  # its text fits the original context
}
