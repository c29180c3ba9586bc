"""StarCoder2 in GGUF. Its files do not say the window, which llama.cpp does not have for it either."""

from llmcli.models.arch import starcoder2
from llmcli.models.gguf import llama
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, rotated_share, typed


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    hidden, heads = entries.whole("embedding_length"), entries.whole("attention.head_count")
    config = {
        **typed(starcoder2.TYPES),
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.whole("attention.head_count_kv", heads),
        "max_position_embeddings": entries.get("context_length"),
        "norm_epsilon": entries.get("attention.layer_norm_epsilon"),
        "rope_theta": entries.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated_share(entries, hidden // heads or 1),
        "sliding_window": entries.get("attention.sliding_window", 0) or None,
        "use_bias": "blk.0.attn_q.bias" in shapes,
    }
    split = {name: llama.NAMES[name] for name in ("layers.{i}.qkv", "layers.{i}.qkv_bias")}
    return Description(config, {**NAMES, **split})
