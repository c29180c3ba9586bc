"""MPT in GGUF."""

from llmcli.errors import CorruptFile, UnsupportedModel
from llmcli.models.arch import mpt
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, typed


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    hidden, heads, inner = (entries.whole(x) for x in ("embedding_length", "attention.head_count", "feed_forward_length"))
    if entries.whole("attention.head_count_kv", heads) != heads:
        raise UnsupportedModel(f"{entries.architecture}.attention.head_count_kv", f"llm runs it only with {heads}")
    if inner % hidden:
        raise CorruptFile(f"{entries.architecture}.feed_forward_length", f"{inner:,} is not a multiple of {hidden:,}")
    slopes = entries.get("attention.max_alibi_bias", 0.0)
    config = {
        **typed(mpt.TYPES),
        "d_model": hidden,
        "expansion_ratio": inner // hidden,
        "n_layers": entries.get("block_count"),
        "n_heads": heads,
        "max_seq_len": entries.get("context_length"),
        "layer_norm_epsilon": entries.get("attention.layer_norm_epsilon"),
        "attn_config": {
            "alibi": slopes != 0,
            "alibi_bias_max": slopes,
            "clip_qkv": entries.get("attention.clamp_kqv"),
        },
    }
    return Description(config, NAMES)
