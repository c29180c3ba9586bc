"""Llama in GGUF, and what converters call so: Mistral and, with experts, Mixtral."""

from collections.abc import Mapping
from typing import Any

from llmcli.errors import UnsupportedModel
from llmcli.models.arch import llama, mistral, mixtral
from llmcli.models.metadata import LONG, SHORT, Description, Entries, Shapes, rotated_share, typed
from llmcli.models.metadata import NAMES as COMMON
from llmcli.models.names import Source, concat, copy

_BLOCK = "blk.{i}"
NAMES = {
    **COMMON,
    "layers.{i}.qkv": concat(*(f"{_BLOCK}.attn_{x}.weight" for x in "qkv")),
    "layers.{i}.qkv_bias": concat(*(f"{_BLOCK}.attn_{x}.bias" for x in "qkv")),
    "layers.{i}.query_norm": copy(f"{_BLOCK}.attn_q_norm.weight"),
    "layers.{i}.key_norm": copy(f"{_BLOCK}.attn_k_norm.weight"),
    "layers.{i}.gate_up": concat(f"{_BLOCK}.ffn_gate.weight", f"{_BLOCK}.ffn_up.weight"),
    "layers.{i}.gate_up_bias": concat(f"{_BLOCK}.ffn_gate.bias", f"{_BLOCK}.ffn_up.bias"),
    "layers.{i}.router": copy(f"{_BLOCK}.ffn_gate_inp.weight"),
    "layers.{i}.experts_up": Source("stack_concat", tuple(f"{_BLOCK}.ffn_{x}.{{e}}.weight" for x in ("gate", "up"))),
    "layers.{i}.experts_down": Source("stack", (f"{_BLOCK}.ffn_down.{{e}}.weight",)),
}


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    window, experts, chosen = (entries.get(x, 0) for x in ("attention.sliding_window", "expert_count", "expert_used_count"))
    if experts:
        config = fields(entries, mixtral.TYPES, rope_factors)
        config |= {"num_local_experts": experts, "num_experts_per_tok": chosen, "sliding_window": window or None}
    else:
        config = fields(entries, (mistral if window else llama).TYPES, rope_factors)
        config |= {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
        config["sliding_window"] = window or None
    return Description(config, NAMES, interleaved(config))


def interleaved(config: Mapping[str, Any]) -> dict[str, int]:
    """The tensors whose rows have the halves of each head interleaved, with their heads."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    return {f".{name}.{part}": count for name, count in heads.items() for part in ("weight", "bias")}


def fields(entries: Entries, types: Mapping[str, str], rope_factors: list[float]) -> dict[str, Any]:
    """What Llama and those like it have in config.json. types: of the file of `arch/`."""
    hidden, heads, context = (entries.whole(x) for x in ("embedding_length", "attention.head_count", "context_length"))
    size = entries.whole("attention.key_length", hidden // heads or 1)
    if entries.get("attention.value_length", size) != size:
        raise UnsupportedModel(f"{entries.architecture}.attention.value_length", "keys and values have different sizes")
    return {
        **typed(types),
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.whole("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": context,
        "rms_norm_eps": entries.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": entries.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated_share(entries, size),
        "rope_scaling": _scaling(entries, context, rope_factors),
    }


def _scaling(entries: Entries, context: int, factors: list[float]) -> dict[str, Any] | None:
    """config.json's rope_scaling."""
    kind, factor = entries.get("rope.scaling.type", "none"), entries.get("rope.scaling.factor")
    trained, old = entries.get("rope.scaling.original_context_length", context), entries.get("rope.scale_linear", 1.0)
    if factors:  # a factor for each pair: what longrope does, with one list for texts of all lengths
        lists = {"short_factor": factors, "long_factor": factors}
        return {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": context, **lists}
    short, long = entries.factors[SHORT], entries.factors[LONG]
    if short and long:
        own = {"attention_factor": entries.get("rope.scaling.attn_factor", 1.0), "original_max_position_embeddings": trained}
        return {"rope_type": "longrope", "short_factor": short, "long_factor": long, **own}
    if kind == "none":
        return {"rope_type": "linear", "factor": old} if old not in (0.0, 1.0) else None
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind != "yarn" or entries.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise UnsupportedModel("the GGUF file", f"llm does not know its rotary scaling {str(kind)[:40]!a}")
    betas = {name: entries.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": trained, **betas}
