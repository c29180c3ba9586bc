"""OLMo 2 in GGUF."""

from llmcli.models.arch import olmo2
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes
from llmcli.models.names import copy

_BLOCK = "blk.{i}"
NAMES = {
    **llama.NAMES,
    "layers.{i}.attention_post_norm": copy(f"{_BLOCK}.post_attention_norm.weight"),
    "layers.{i}.mlp_post_norm": copy(f"{_BLOCK}.post_ffw_norm.weight"),
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    return Description(llama.fields(entries, olmo2.TYPES, rope_factors), NAMES)
