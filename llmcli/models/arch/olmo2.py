"""OLMo 2: Llama with norms behind attention and MLP instead of before, and over all queries and all keys."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.names import copy
from llmcli.models.spec import Spec

TYPES = {"olmo2": "Olmo2ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    "layers.{i}.query_norm": copy(f"{_LAYER}.self_attn.q_norm.weight"),
    "layers.{i}.key_norm": copy(f"{_LAYER}.self_attn.k_norm.weight"),
    "layers.{i}.attention_post_norm": copy(f"{_LAYER}.post_attention_layernorm.weight"),
    "layers.{i}.mlp_post_norm": copy(f"{_LAYER}.post_feedforward_layernorm.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(rms_norm_eps=1e-5)
    plain = llama.with_attention(llama.spec(cfg), qk_norm="full")
    return replace(plain, layers=tuple(replace(x, pre_norms=False, post_norms=True) for x in plain.layers))


_NAMED = {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "torch_dtype": "float32"}
TINY = {"olmo2": {**llama.TINY["llama-linear"], **_NAMED, "rope_scaling": None}}
