"""Qwen3 in GGUF: Llama, with rows as the original has them."""

from llmcli.models.arch import qwen3
from llmcli.models.gguf.llama import NAMES, fields
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    return Description(fields(entries, qwen3.TYPES, rope_factors), NAMES)
