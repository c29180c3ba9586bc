"""Cohere 2 in GGUF: three layers with a window, then one without."""

from llmcli.models.arch import cohere2
from llmcli.models.gguf import command_r, llama
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = command_r.fields(entries, cohere2.TYPES, rope_factors)
    return Description(config | {"sliding_window": entries.whole("attention.sliding_window"), "sliding_window_pattern": 4}, llama.NAMES)
