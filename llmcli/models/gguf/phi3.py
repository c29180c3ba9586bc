"""Phi-3 and Phi-4 in GGUF: what the original joins is joined, gate and up under the name of up."""

from llmcli.models.arch import phi3
from llmcli.models.gguf import llama
from llmcli.models.metadata import NAMES, Description, Entries, Shapes
from llmcli.models.names import copy


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    config = llama.fields(entries, phi3.TYPES, rope_factors)
    config["sliding_window"] = entries.get("attention.sliding_window", 0) or None
    return Description(config, {**NAMES, "layers.{i}.gate_up": copy("blk.{i}.ffn_up.weight")})
