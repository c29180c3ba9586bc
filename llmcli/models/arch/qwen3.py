"""Qwen3: Llama with a norm on each query and key head before the rotation; windows as in Qwen2."""

from llmcli.models.arch import llama, qwen2
from llmcli.models.config import Config
from llmcli.models.names import copy
from llmcli.models.spec import Spec

TYPES = {"qwen3": "Qwen3ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
NAMES = {
    **llama.NAMES,
    "layers.{i}.query_norm": copy("model.layers.{i}.self_attn.q_norm.weight"),
    "layers.{i}.key_norm": copy("model.layers.{i}.self_attn.k_norm.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(head_dim=128)
    return qwen2.windows(cfg, llama.with_attention(llama.spec(cfg), qk_norm="head"))


_BASE = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
TINY = {"qwen3": {**llama.TINY["llama-linear"], **_BASE, "rope_scaling": None}}
