"""Granite: Llama with four multipliers: of the embeddings, the attention's scores, what is added to the residual, the logits."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"granite": "GraniteForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED


def spec(cfg: Config) -> Spec:
    scale = cfg.number("attention_multiplier", low=1e-6, high=1e6, default=1.0)
    return replace(
        llama.with_attention(llama.spec(cfg), scale=scale),
        embedding_scale=cfg.number("embedding_multiplier", low=1e-6, high=1e6, default=1.0),
        residual_scale=cfg.number("residual_multiplier", low=1e-6, high=1e6, default=1.0),
        logit_scale=1 / cfg.number("logits_scaling", low=1e-6, high=1e6, default=1.0),
    )


_NAMED = {"model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.35}
_SCALES = {"embedding_multiplier": 3.5, "residual_multiplier": 0.4, "logits_scaling": 1.75}
TINY = {"granite": {**llama.TINY["llama-tied"], **_NAMED, **_SCALES, "attention_bias": True}}
