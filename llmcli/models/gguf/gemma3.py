"""Gemma 3 (text) in GGUF: Gemma 2 with norms on queries and keys, a window in all but every sixth layer, two rotary bases."""

from llmcli.models.arch import gemma3_text
from llmcli.models.gguf import gemma2, llama
from llmcli.models.metadata import Description, Entries, Shapes

NAMES = gemma2.NAMES
LAYERS_27B = 62


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, gemma3_text.TYPES, rope_factors)
    config |= {
        "sliding_window": entries.get("attention.sliding_window"),
        "sliding_window_pattern": entries.get("attention.sliding_window_pattern", 6),
        "rope_theta": entries.get("rope.freq_base", 1e6),
        "rope_local_base_freq": entries.get("rope.freq_base_swa", 1e4),
        "final_logit_softcapping": entries.get("final_logit_softcapping"),
        "query_pre_attn_scalar": gemma2.scalar(config, LAYERS_27B),
    }
    return Description(config, NAMES)
