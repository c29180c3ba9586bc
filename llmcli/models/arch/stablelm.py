"""StableLM 1 and 2: Llama with layer norms and a rotated part of each head; in some models attention and MLP side by side,
or a norm of its own for every head of queries and keys."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.names import both, concat
from llmcli.models.spec import Norm, Spec

TYPES = {"stablelm": "StableLmForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    **both("layers.{i}.attention_norm", f"{_LAYER}.input_layernorm"),
    **both("layers.{i}.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    **both("final_norm", "model.norm"),
    "layers.{i}.query_norm": concat(f"{_LAYER}.self_attn.q_layernorm.norms.{{h}}.weight"),
    "layers.{i}.key_norm": concat(f"{_LAYER}.self_attn.k_layernorm.norms.{{h}}.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(partial_rotary_factor=0.25, max_position_embeddings=4096)
    norms = "each" if cfg.flag("qk_layernorm", default=False) else ""
    plain = llama.with_attention(llama.spec(cfg), bias=cfg.flag("use_qkv_bias", default=False), qk_norm=norms)
    if cfg.flag("use_parallel_residual", default=False):
        plain = replace(plain, layers=tuple(replace(x, residual="parallel", shared_norm=True) for x in plain.layers))
    return replace(plain, norm=Norm("layer", cfg.number("layer_norm_eps", low=0, high=1, default=1e-5), bias=True))


_NAMED = {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "rms_norm_eps": None, "head_dim": None, "hidden_size": 48}
_OWN = {"num_attention_heads": 4, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "tie_word_embeddings": False}
_PLAIN = {**llama.TINY["llama-tied"], **_NAMED, **_OWN}
TINY = {
    "stablelm": {**_PLAIN, "use_qkv_bias": True},
    "stablelm-parallel": {**_PLAIN, "use_parallel_residual": True, "qk_layernorm": True, "torch_dtype": "bfloat16"},
}
