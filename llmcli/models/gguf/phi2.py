"""Phi-1 and Phi-2 in GGUF, with queries, keys and values in one tensor or in three."""

from llmcli.models.arch import phi
from llmcli.models.gguf import llama
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, rotated_share, typed
from llmcli.models.names import both

SPLIT = {name: llama.NAMES[name] for name in ("layers.{i}.qkv", "layers.{i}.qkv_bias")}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    hidden, heads = entries.whole("embedding_length"), entries.whole("attention.head_count")
    config = {
        **typed(phi.TYPES),
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.whole("attention.head_count_kv", heads),
        "max_position_embeddings": entries.get("context_length"),
        "layer_norm_eps": entries.get("attention.layer_norm_epsilon"),
        "rope_theta": entries.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated_share(entries, hidden // heads or 1) or 1.0,
    }
    joined = "blk.0.attn_qkv.weight" in shapes
    return Description(config, {**NAMES, **both("head", "output"), **({} if joined else SPLIT)})
