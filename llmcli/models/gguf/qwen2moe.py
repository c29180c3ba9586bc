"""Qwen2-MoE in GGUF: all of its layers have experts, whose weights are not made to sum to 1."""

from typing import Any

from llmcli.models.arch import qwen2_moe
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes
from llmcli.models.names import concat, copy, reshape

_BLOCK = "blk.{i}"
NAMES = {
    **llama.NAMES,
    "layers.{i}.shared.gate_up": concat(f"{_BLOCK}.ffn_gate_shexp.weight", f"{_BLOCK}.ffn_up_shexp.weight"),
    "layers.{i}.shared.down": copy(f"{_BLOCK}.ffn_down_shexp.weight"),
    "layers.{i}.shared_gate": reshape(f"{_BLOCK}.ffn_gate_inp_shexp.weight"),
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, qwen2_moe.TYPES, rope_factors) | experts(entries)
    shared = {"shared_expert_intermediate_size": entries.whole("expert_shared_feed_forward_length")}
    return Description(config | shared | {"qkv_bias": "blk.0.attn_q.bias" in shapes, "norm_topk_prob": False}, NAMES)


def experts(entries: Entries) -> dict[str, Any]:
    """How many experts there are, how many a token takes, and how wide they are."""
    return {
        "num_experts": entries.whole("expert_count"),
        "num_experts_per_tok": entries.whole("expert_used_count"),
        "moe_intermediate_size": entries.whole("expert_feed_forward_length"),
    }
