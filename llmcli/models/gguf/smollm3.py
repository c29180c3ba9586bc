"""SmolLM3 in GGUF: Llama, where every fourth layer has no rotary positions."""

from llmcli.models.arch import smollm3
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, smollm3.TYPES, rope_factors)
    config |= {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
    return Description(config | {"no_rope_layer_interval": 4}, llama.NAMES, llama.interleaved(config))
