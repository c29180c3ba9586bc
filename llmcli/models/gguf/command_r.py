"""Cohere Command-R in GGUF. Its rows are not interleaved: the original rotates neighbours too."""

from collections.abc import Mapping
from typing import Any

from llmcli.models.arch import cohere
from llmcli.models.gguf import llama
from llmcli.models.metadata import Description, Entries, Shapes
from llmcli.models.names import reshape

NAMES = {
    **llama.NAMES,
    "layers.{i}.query_norm": reshape("blk.{i}.attn_q_norm.weight"),
    "layers.{i}.key_norm": reshape("blk.{i}.attn_k_norm.weight"),
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    return Description(fields(entries, cohere.TYPES, rope_factors) | {"use_qk_norm": "blk.0.attn_q_norm.weight" in shapes}, NAMES)


def fields(entries: Entries, types: Mapping[str, str], rope_factors: list[float]) -> dict[str, Any]:
    """What Cohere's models have in config.json. types: of the file of `arch/`."""
    own = {"layer_norm_eps": entries.get("attention.layer_norm_epsilon"), "logit_scale": entries.get("logit_scale")}
    return llama.fields(entries, types, rope_factors) | own
