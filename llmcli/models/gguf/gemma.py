"""Gemma 1 in GGUF: Llama, with rows as the original has them; norms' weights have their 1 already."""

from llmcli.models.arch import gemma
from llmcli.models.gguf.llama import NAMES, fields
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    return Description(fields(entries, gemma.TYPES, rope_factors), NAMES)
