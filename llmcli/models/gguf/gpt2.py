"""GPT-2 in GGUF: matrices are not transposed, as they are in the original."""

from llmcli.models.arch import gpt2
from llmcli.models.metadata import NAMES, Description, Entries, Shapes, typed


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = {
        **typed(gpt2.TYPES),
        "n_embd": entries.get("embedding_length"),
        "n_head": entries.get("attention.head_count"),
        "n_layer": entries.get("block_count"),
        "n_inner": entries.get("feed_forward_length"),
        "n_positions": entries.get("context_length"),
        "layer_norm_epsilon": entries.get("attention.layer_norm_epsilon"),
    }
    return Description(config, NAMES)
