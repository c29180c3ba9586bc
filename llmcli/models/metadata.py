"""The model that a GGUF file describes, in the words of the Hub's config.json, and the names of its tensors.

GGUF's metadata say the same as config.json in other words. The files in `gguf/` are the list of its architectures, each
called as `general.architecture` calls it (with _ for -): they translate to the fields that `arch/` reads. Tensors need less rearranging:
matrices are stored [N, K] in all families, and a joined q, k, v is joined as ours is. Nothing is passed over in silence:
an entry of the architecture's own that nobody asked for stops the import.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from llmcli.errors import CorruptFile, UnsupportedModel
from llmcli.models import gguf
from llmcli.models.config import OVERRIDE
from llmcli.models.names import Source, both, copy

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, rows first."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of numbers that the rotary frequencies are divided by (Llama 3's scaling, worked out for each pair)."""
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same for short texts and for long ones (LongRoPE)."""
FACTORS = (ROPE_FACTORS, SHORT, LONG)


@dataclass
class Description:
    """config: a config.json for `architectures.describe`. NAMES, PREFIX, IGNORED: for `names.sources`. interleaved:
    endings of tensors -> their heads, whose rows have the halves of each head interleaved."""

    config: dict[str, Any]
    NAMES: Mapping[str, Source]
    interleaved: Mapping[str, int] = field(default_factory=dict)
    PREFIX: str = ""
    IGNORED: tuple[str, ...] = FACTORS


class Entries:
    """The metadata of one architecture, without its prefix. Remembers what was asked for. factors: the numbers of each
    tensor of FACTORS, or none."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, factors: Mapping[str, list[float]]) -> None:
        prefix = f"{architecture}."
        self._data = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
        self._read: set[str] = set()
        self.factors = factors
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

    def finish(self, allow: Collection[str]) -> None:
        """Raises UnsupportedModel naming entries that nobody asked for and that may change the numbers, but for those in
        `allow` (with the architecture's name)."""
        left = sorted(name for name in set(self._data) - self._read - _HARMLESS if f"{self.architecture}.{name}" not in allow)
        if left:
            shown = ", ".join(f"{self.architecture}.{name}"[:80] for name in left[:5])
            raise UnsupportedModel("the GGUF file", f"llm does not know what {shown} would change", OVERRIDE)


_HARMLESS = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_feed_forward_length"})


class Family(Protocol):
    """What each file in `gguf/` defines."""

    def describe(self, entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
        """The description, without what `read` adds. rope_factors: the numbers of ROPE_FACTORS, or none."""
        ...


def supported() -> list[str]:
    """The architectures that we read, by GGUF's names."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(gguf.__path__))


def read(metadata: Mapping[str, Any], shapes: Shapes, factors: Mapping[str, list[float]], allow: Collection[str] = ()) -> Description:
    """The description of a file with these metadata and tensors. factors: see Entries; allow: entries that may be there unknown. Raises
    UnsupportedModel, with the list of what is supported, or CorruptFile."""
    name = metadata.get("general.architecture")
    if name not in supported():
        what = f"unsupported GGUF architecture {str(name)[:60]!a}"
        raise UnsupportedModel(what, f"llm runs {', '.join(supported())}", "Use another model")
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModel("the GGUF file", "it is one part of a model in several", "Join them with llama-gguf-split --merge")
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        raise CorruptFile("the GGUF file", "it has no tensor token_embd.weight: it holds a vocabulary, or is damaged")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > embedding[0]:
        raise CorruptFile("the GGUF file", f"it has {len(tokens):,} tokens and embeddings for {embedding[0]:,}")
    entries = Entries(metadata, name, factors)
    family = cast(Family, importlib.import_module(f"{gguf.__name__}.{name.replace('-', '_')}"))
    found = family.describe(entries, shapes, factors[ROPE_FACTORS])
    for entry, value in (("attention.causal", True), ("pooling_type", 0)):
        if entries.get(entry, value) != value:
            raise UnsupportedModel(f"{name}.{entry}", "llm runs models that write text")
    entries.finish(allow)
    config = {**found.config, "vocab_size": embedding[0], "tie_word_embeddings": "output.weight" not in shapes}
    return replace(found, config={field: value for field, value in config.items() if value is not None})


def typed(types: Mapping[str, str]) -> dict[str, Any]:
    """The fields of config.json that choose the file of `arch/` with these TYPES."""
    kind, name = next(iter(types.items()))
    return {"model_type": kind, "architectures": [name]}


def rotated_share(entries: Entries, size: int) -> float | None:
    """The share of a head's columns that is rotated; None for all. The half keeps rounding from losing a column."""
    rotated = entries.whole("rope.dimension_count", size)
    return (rotated + 0.5) / size if rotated < size else None


NAMES = {
    "embedding": copy("token_embd.weight"),
    "position": copy("position_embd.weight"),
    "head": copy("output.weight"),
    **both("final_norm", "output_norm"),
    **both("layers.{i}.attention_norm", "blk.{i}.attn_norm"),
    **both("layers.{i}.qkv", "blk.{i}.attn_qkv"),
    **both("layers.{i}.attention_out", "blk.{i}.attn_output"),
    **both("layers.{i}.mlp_norm", "blk.{i}.ffn_norm"),
    **both("layers.{i}.up", "blk.{i}.ffn_up"),
    **both("layers.{i}.down", "blk.{i}.ffn_down"),
}
"""How most architectures name their tensors."""
