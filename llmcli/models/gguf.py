"""The model that a GGUF file describes, in the words of the Hub's config.json, and the names of its tensors.

GGUF's metadata say the same as config.json in other words, so each family here is a table from theirs to the fields
that `arch/*.py` read. Its tensors need less rearranging: matrices are stored [N, K] in all families, and a joined
q, k, v is joined as ours is. Nothing is passed over in silence: an entry of the architecture's own that no table
knows stops the import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmcli.errors import CorruptFile, UnsupportedModel
from llmcli.models.names import Source, concat, copy

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, rows first."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of numbers that the rotary frequencies are divided by (Llama 3's scaling, worked out for each pair)."""


@dataclass
class Description:
    """config: a config.json for `architectures.describe`. NAMES, PREFIX, IGNORED: for `names.sources`. interleaved:
    endings of tensors -> their heads, whose rows have the halves of each head interleaved."""

    config: dict[str, Any]
    NAMES: Mapping[str, Source]
    interleaved: dict[str, int]
    PREFIX: str = ""
    IGNORED: tuple[str, ...] = (ROPE_FACTORS,)


class Entries:
    """The metadata of one architecture, without its prefix. Remembers what was asked for."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        prefix = f"{architecture}."
        self._data = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
        self._read: set[str] = set()
        self.architecture = architecture

    def get(self, name: str, default: Any = None) -> Any:
        """A value as it is; a list whose items are all equal counts as one of them. Raises UnsupportedModel for others."""
        self._read.add(name)
        value = self._data.get(name, default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise UnsupportedModel(f"{self.architecture}.{name}", "it differs between layers, and llm runs one for all")
            value = value[0]
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to 2^32. Raises CorruptFile."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= 1 << 32:
            raise CorruptFile(f"{self.architecture}.{name}", "missing" if value is None else f"{str(value)[:40]} is not a possible size")
        return value

    def finish(self) -> None:
        """Raises UnsupportedModel naming entries that nobody asked for and that may change the numbers."""
        left = sorted(set(self._data) - self._read - _HARMLESS)
        if left:
            shown = ", ".join(f"{self.architecture}.{name}"[:80] for name in left[:5])
            raise UnsupportedModel("the GGUF file", f"llm does not know what {shown} would change")


_HARMLESS = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "feed_forward_length", "expert_feed_forward_length"})


def read(metadata: Mapping[str, Any], shapes: Shapes, rope_factors: list[float]) -> Description:
    """The description of a file with these metadata and tensors. rope_factors: the numbers of ROPE_FACTORS, or none.

    Raises UnsupportedModel, with the list of what is supported, or CorruptFile."""
    architecture = metadata.get("general.architecture")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        kinds = ", ".join(_FAMILIES)
        raise UnsupportedModel(f"unsupported GGUF architecture {str(architecture)[:60]!a}", f"llm runs {kinds}", "Use another model")
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModel("the GGUF file", "it is one part of a model in several", "Join them with llama-gguf-split --merge")
    entries = Entries(metadata, str(architecture))
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        raise CorruptFile("the GGUF file", "it has no tensor token_embd.weight: it holds a vocabulary, or is damaged")
    found = family(entries, shapes, rope_factors)
    config = {**found.config, "vocab_size": embedding[0], "tie_word_embeddings": "output.weight" not in shapes}
    for name, required in (("attention.causal", True), ("pooling_type", 0)):
        if entries.get(name, required) != required:
            raise UnsupportedModel(f"{architecture}.{name}", "llm runs models that write text")
    entries.finish()
    return replace(found, config={name: value for name, value in config.items() if value is not None})


def _llama(entries: Entries, shapes: Shapes, factors: list[float]) -> Description:
    heads = entries.whole("attention.head_count")
    config = _common(entries, shapes, factors, heads, "LlamaForCausalLM", "llama")
    pairs = {"attn_q": heads, "attn_k": config["num_key_value_heads"]}
    interleaved = {f".{name}.{part}": count for name, count in pairs.items() for part in ("weight", "bias")}
    config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    window, experts = entries.get("attention.sliding_window", 0), entries.get("expert_count", 0)
    used = entries.get("expert_used_count", 0)
    if experts:
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
        config |= {"num_local_experts": experts, "num_experts_per_tok": used, "sliding_window": window or None}
        del config["attention_bias"], config["mlp_bias"]
    elif window:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return Description(config, _NAMES, interleaved)


def _qwen2(entries: Entries, shapes: Shapes, factors: list[float]) -> Description:
    heads = entries.whole("attention.head_count")
    return Description(_common(entries, shapes, factors, heads, "Qwen2ForCausalLM", "qwen2"), _NAMES, {})


def _qwen3(entries: Entries, shapes: Shapes, factors: list[float]) -> Description:
    heads = entries.whole("attention.head_count")
    return Description(_common(entries, shapes, factors, heads, "Qwen3ForCausalLM", "qwen3"), _NAMES, {})


def _common(entries: Entries, shapes: Shapes, factors: list[float], heads: int, name: str, kind: str) -> dict[str, Any]:
    """The fields that Llama and its relatives share."""
    hidden, context = entries.whole("embedding_length"), entries.whole("context_length")
    size = entries.whole("attention.key_length", hidden // heads or 1)
    if entries.get("attention.value_length", size) != size:
        raise UnsupportedModel(f"{kind}.attention.value_length", "keys and values of different sizes")
    base = entries.get("rope.freq_base", 10000.0)
    return {
        "model_type": kind,
        "architectures": [name],
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.whole("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": context,
        "rms_norm_eps": entries.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "partial_rotary_factor": _portion(entries, size),
        "rope_scaling": _scaling(entries, context, factors),
    }


def _portion(entries: Entries, size: int) -> float | None:
    """The rotated share of a head; None for all of it. The half keeps rounding from losing a column."""
    rotated = entries.whole("rope.dimension_count", size)
    return (rotated + 0.5) / size if rotated < size else None


def _scaling(entries: Entries, context: int, factors: list[float]) -> dict[str, Any] | None:
    """rope_scaling of config.json."""
    kind, factor = entries.get("rope.scaling.type", "none"), entries.get("rope.scaling.factor")
    trained, old = entries.get("rope.scaling.original_context_length", context), entries.get("rope.scale_linear", 1.0)
    magnitude = entries.get("rope.scaling.attn_factor", 1.0)
    if factors:  # a factor for each pair: what longrope does, with one list for all lengths
        lists = {"short_factor": factors, "long_factor": factors}
        return {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": context, **lists}
    if kind == "none":
        return {"rope_type": "linear", "factor": old} if old not in (0.0, 1.0) else None
    if magnitude != 1.0 or kind not in ("linear", "yarn"):
        raise UnsupportedModel("the GGUF file", f"llm does not know its rotary scaling {str(kind)[:40]!a}")
    found = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        betas = {name: entries.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        found |= {"original_max_position_embeddings": trained, **betas}
    return found


def _gpt2(entries: Entries, shapes: Shapes, factors: list[float]) -> Description:
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": entries.get("embedding_length"),
        "n_head": entries.get("attention.head_count"),
        "n_layer": entries.get("block_count"),
        "n_inner": entries.get("feed_forward_length"),
        "n_positions": entries.get("context_length"),
        "layer_norm_epsilon": entries.get("attention.layer_norm_epsilon"),
    }
    return Description(config, _JOINED, {})


def _gptneox(entries: Entries, shapes: Shapes, factors: list[float]) -> Description:
    hidden, heads = entries.whole("embedding_length"), entries.whole("attention.head_count")
    config = {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": entries.whole("context_length"),
        "layer_norm_eps": entries.get("attention.layer_norm_epsilon"),
        "rotary_emb_base": entries.get("rope.freq_base", 10000.0),
        "rotary_pct": _portion(entries, hidden // heads) or 1.0,
        "use_parallel_residual": entries.get("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in shapes,
    }
    return Description(config, _JOINED, {})


_FAMILIES: dict[str, Callable[[Entries, Shapes, list[float]], Description]] = {
    **{"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3},
    **{"gpt2": _gpt2, "gptneox": _gptneox},
}


def _both(ours: str, theirs: str) -> dict[str, Source]:
    """A weight and its bias."""
    return {ours: copy(f"{theirs}.weight"), f"{ours}_bias": copy(f"{theirs}.bias")}


def _all(ours: str, *theirs: str) -> dict[str, Source]:
    """A weight joined of several, and its bias."""
    return {ours: concat(*(f"{name}.weight" for name in theirs)), f"{ours}_bias": concat(*(f"{name}.bias" for name in theirs))}


_LAYER, _BLOCK = "layers.{i}", "blk.{i}"
_SHARED = {
    "embedding": copy("token_embd.weight"),
    "position": copy("position_embd.weight"),
    "head": copy("output.weight"),
    **_both("final_norm", "output_norm"),
    **_both(f"{_LAYER}.attention_norm", f"{_BLOCK}.attn_norm"),
    **_both(f"{_LAYER}.attention_out", f"{_BLOCK}.attn_output"),
    **_both(f"{_LAYER}.mlp_norm", f"{_BLOCK}.ffn_norm"),
    **_both(f"{_LAYER}.up", f"{_BLOCK}.ffn_up"),
    **_both(f"{_LAYER}.down", f"{_BLOCK}.ffn_down"),
}
_NAMES = {
    **_SHARED,
    **_all(f"{_LAYER}.qkv", *(f"{_BLOCK}.attn_{x}" for x in "qkv")),
    **_all(f"{_LAYER}.gate_up", f"{_BLOCK}.ffn_gate", f"{_BLOCK}.ffn_up"),
    f"{_LAYER}.query_norm": copy(f"{_BLOCK}.attn_q_norm.weight"),
    f"{_LAYER}.key_norm": copy(f"{_BLOCK}.attn_k_norm.weight"),
    f"{_LAYER}.router": copy(f"{_BLOCK}.ffn_gate_inp.weight"),
    f"{_LAYER}.experts_up": Source("stack_concat", tuple(f"{_BLOCK}.ffn_{x}.{{e}}.weight" for x in ("gate", "up"))),
    f"{_LAYER}.experts_down": Source("stack", (f"{_BLOCK}.ffn_down.{{e}}.weight",)),
}
_JOINED = {**_SHARED, **_both(f"{_LAYER}.qkv", f"{_BLOCK}.attn_qkv")}
