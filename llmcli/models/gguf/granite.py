"""Granite in GGUF: Llama with its multipliers."""

from typing import Any

from llmcli.models.arch import granite
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, granite.TYPES, rope_factors) | multipliers(entries)
    config |= {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
    return Description(config, llama.NAMES, llama.interleaved(config))


def multipliers(entries: Entries) -> dict[str, Any]:
    names = {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier"}
    names |= {"residual_scale": "residual_multiplier", "logit_scale": "logits_scaling"}
    return {field: entries.get(name) for name, field in names.items()}
