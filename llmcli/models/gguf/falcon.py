"""Falcon in GGUF (not the RW models). A second norm of a layer is the attention's, and then the first is the MLP's."""

from dataclasses import replace

from llmcli.models.arch import falcon
from llmcli.models.metadata import NAMES as COMMON
from llmcli.models.metadata import Description, Entries, Shapes, rotated_share, typed
from llmcli.models.names import both

_FIRST, _SECOND = both("norm", "blk.{i}.attn_norm"), both("norm", "blk.{i}.attn_norm_2")
NAMES = {
    **COMMON,
    "layers.{i}.attention_norm": replace(_SECOND["norm"], otherwise=_FIRST["norm"]),
    "layers.{i}.attention_norm_bias": replace(_SECOND["norm_bias"], otherwise=_FIRST["norm_bias"]),
    "layers.{i}.mlp_norm": _FIRST["norm"],
    "layers.{i}.mlp_norm_bias": _FIRST["norm_bias"],
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    heads = entries.whole("attention.head_count")
    kv_heads = entries.whole("attention.head_count_kv", heads)
    config = {
        **typed(falcon.TYPES),
        "hidden_size": entries.whole("embedding_length"),
        "ffn_hidden_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": kv_heads > 1,
        "num_ln_in_parallel_attn": (2 if "blk.0.attn_norm_2.weight" in shapes else 1) if kv_heads > 1 else None,
        "max_position_embeddings": entries.get("context_length"),
        "layer_norm_epsilon": entries.get("attention.layer_norm_epsilon"),
        "rope_theta": entries.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated_share(entries, entries.whole("embedding_length") // heads or 1),
        "bias": "blk.0.attn_qkv.bias" in shapes,
    }
    return Description(config, NAMES)
