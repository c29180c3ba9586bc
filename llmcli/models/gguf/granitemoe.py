"""Granite-MoE in GGUF, with or without the MLP beside the experts."""

from llmcli.models.arch import granite_moe
from llmcli.models.gguf import granite, llama
from llmcli.models.gguf.qwen2moe import NAMES
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, granite_moe.TYPES, rope_factors) | granite.multipliers(entries)
    config |= {
        "num_local_experts": entries.whole("expert_count"),
        "num_experts_per_tok": entries.whole("expert_used_count"),
        "shared_intermediate_size": entries.get("expert_shared_feed_forward_length", 0),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
    }
    return Description(config, NAMES, llama.interleaved(config))
