"""Qwen2 in GGUF: Llama, with rows as the original has them."""

from llmcli.models.arch import qwen2
from llmcli.models.gguf.llama import NAMES, fields
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    return Description(fields(entries, qwen2.TYPES, rope_factors), NAMES)
