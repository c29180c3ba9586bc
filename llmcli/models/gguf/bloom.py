"""BLOOM in GGUF: the rows of queries, keys and values are not interleaved, as they are in the original."""

from llmcli.errors import UnsupportedModel
from llmcli.models.arch import bloom
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, typed
from llmcli.models.names import both


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    heads = entries.whole("attention.head_count")
    if entries.whole("attention.head_count_kv", heads) != heads:
        raise UnsupportedModel(f"{entries.architecture}.attention.head_count_kv", f"llm runs it only with {heads}")
    config = {
        **typed(bloom.TYPES),
        "hidden_size": entries.get("embedding_length"),
        "n_inner": entries.get("feed_forward_length"),
        "n_layer": entries.get("block_count"),
        "n_head": heads,
        "seq_length": entries.get("context_length"),
        "layer_norm_epsilon": entries.get("attention.layer_norm_epsilon"),
    }
    return Description(config, {**NAMES, **both("embedding_norm", "token_embd_norm")})
