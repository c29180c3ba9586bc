"""GPT-OSS in GGUF: gates and ups are apart, and YaRN's ramp begins and ends where the original's does."""

from llmcli.models.arch import gpt_oss
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes
from llmcli.models.names import Source, both, copy

_BLOCK = "blk.{i}"
NAMES = {
    **llama.NAMES,
    **both("layers.{i}.router", f"{_BLOCK}.ffn_gate_inp"),
    "layers.{i}.mlp_norm": copy(f"{_BLOCK}.post_attention_norm.weight"),
    "layers.{i}.sinks": copy(f"{_BLOCK}.attn_sinks.weight"),
    "layers.{i}.experts_up_bias": Source("stack_concat", tuple(f"{_BLOCK}.ffn_{x}.{{e}}.bias" for x in ("gate", "up"))),
    "layers.{i}.experts_down_bias": Source("stack", (f"{_BLOCK}.ffn_down.{{e}}.bias",)),
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, gpt_oss.TYPES, rope_factors)
    config |= {
        "intermediate_size": entries.whole("expert_feed_forward_length"),
        "num_local_experts": entries.whole("expert_count"),
        "num_experts_per_tok": entries.whole("expert_used_count"),
        "sliding_window": entries.whole("attention.sliding_window"),
    }
    if config["rope_scaling"]:
        config["rope_scaling"] |= {"truncate": False}
    return Description(config, NAMES)
