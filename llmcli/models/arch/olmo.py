"""OLMo 1: Llama whose norms have no weights, with queries, keys and values that may be clipped."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Norm, Spec

TYPES = {"olmo": "OlmoForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED


def spec(cfg: Config) -> Spec:
    clip = cfg.number("clip_qkv", low=1e-6, high=1e9, default=0.0)
    return replace(llama.with_attention(llama.spec(cfg), clip=clip), norm=Norm("layer", 1e-5, weight=False))


_NAMED = {"model_type": "olmo", "architectures": ["OlmoForCausalLM"], "rms_norm_eps": None, "head_dim": None}
TINY = {"olmo": {**llama.TINY["llama-tied"], **_NAMED, "clip_qkv": 0.9}}
