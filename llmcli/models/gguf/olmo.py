"""OLMo 1 in GGUF: Llama without weights of norms."""

from llmcli.models.arch import olmo
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, olmo.TYPES, rope_factors)
    entries.get("attention.layer_norm_epsilon")  # the original's is fixed
    return Description(config | {"clip_qkv": entries.get("attention.clamp_kqv")}, llama.NAMES, llama.interleaved(config))
