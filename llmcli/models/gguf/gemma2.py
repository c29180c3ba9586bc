"""Gemma 2 in GGUF: Gemma, with the norms behind attention and MLP, caps, and a window in every other layer."""

from typing import Any

from llmcli.models.arch import gemma2
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes
from llmcli.models.names import copy

NAMES = {
    **llama.NAMES,
    "layers.{i}.attention_post_norm": copy("blk.{i}.post_attention_norm.weight"),
    "layers.{i}.mlp_post_norm": copy("blk.{i}.post_ffw_norm.weight"),
}
LAYERS_27B = 46


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, gemma2.TYPES, rope_factors)
    config |= {
        "sliding_window": entries.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": entries.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": entries.get("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": scalar(config, LAYERS_27B),
    }
    return Description(config, NAMES)


def scalar(config: dict[str, Any], layers: int) -> int:
    """query_pre_attn_scalar. Files do not say it: it is the head size, but in the largest model, with so many layers, the
    hidden size's share of a head."""
    if config["num_hidden_layers"] == layers:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])
