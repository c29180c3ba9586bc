"""Qwen3-MoE in GGUF: all of its layers have experts, whose weights sum to 1."""

from llmcli.models.arch import qwen3_moe
from llmcli.models.gguf import llama
from llmcli.models.gguf.qwen2moe import experts
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, qwen3_moe.TYPES, rope_factors) | experts(entries)
    return Description(config | {"norm_topk_prob": True}, llama.NAMES)
