"""GPT-NeoX in GGUF: the rows of queries, keys and values are not interleaved, as they are in the original."""

from llmcli.models.arch import gpt_neox
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, rotated_share, typed


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    hidden, heads = entries.whole("embedding_length"), entries.whole("attention.head_count")
    config = {
        **typed(gpt_neox.TYPES),
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": entries.get("context_length"),
        "layer_norm_eps": entries.get("attention.layer_norm_epsilon"),
        "rotary_emb_base": entries.get("rope.freq_base", 10000.0),
        "rotary_pct": rotated_share(entries, hidden // heads or 1) or 1.0,
        "use_parallel_residual": entries.get("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in shapes,
    }
    return Description(config, NAMES)
