"""How a plan's weight is made from a checkpoint's tensors: data only, `weights/convert.py` carries it out.

An architecture file's NAMES maps a pattern of our weight name to a Source whose tensor names are patterns too:
{i} stands for the layer, {e} for each expert and {h} for each head in turn. `sources` fills them in for one plan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from llmcli.errors import InternalError
from llmcli.models.spec import Attention, Spec
from llmcli.plan import Plan, Weight

TRANSFORMS: dict[str, str] = {
    "copy": "the one tensor as it is",
    "plus_one": "the one tensor, a norm's weight, plus 1",
    "transpose": "the one tensor [K, N] becomes [N, K]",
    "concat": "the tensors' rows (or a bias's elements) one after the other, in the order of `names`",
    "split_qkv": "the one tensor's rows, interleaved as [kv heads][its q heads, k, v][D], become q | k | v; the same for a bias",
    "reshape": "the one tensor's numbers, a few, in another shape",
    "stack": "names[e] [N, K] become [E, N, K] (or biases [N] become [E, N])",
    "transpose_each": "the one tensor [E, K, N] becomes [E, N, K]",
    "transpose_alternating": "the same, and each expert's rows 0, 2, ... come before its rows 1, 3, ...",
    "alternating": "the one tensor's columns [E, N]: 0, 2, ... before 1, 3, ...",
    "mxfp4": "blocks [E, N, K / 32, 16] and scales [E, N, K / 32] of 4-bit floats become [E, N, K]",
    "mxfp4_alternating": "the same, with rows as in 'transpose_alternating'",
    "stack_concat": "for each expert e, the rows of names[2e] and names[2e + 1] one after the other: [E, 2N, K]",
}
"""Every transform word and its meaning. The result always has the plan weight's shape."""


@dataclass(frozen=True)
class Source:
    """transform: a word of TRANSFORMS. names: checkpoint tensors. heads, kv_heads: for 'split_qkv'."""

    transform: str
    names: tuple[str, ...]
    heads: int = 0
    kv_heads: int = 0
    otherwise: Source | None = None
    """How it is made where the checkpoint does not have the first of `names`."""


def copy(name: str) -> Source:
    return Source("copy", (name,))


def plus_one(name: str) -> Source:
    return Source("plus_one", (name,))


def transpose(name: str) -> Source:
    return Source("transpose", (name,))


def split_qkv(name: str) -> Source:
    return Source("split_qkv", (name,))


def reshape(name: str) -> Source:
    return Source("reshape", (name,))


def concat(*names: str) -> Source:
    return Source("concat", names)


def both(ours: str, theirs: str) -> dict[str, Source]:
    """A weight and its bias, as they are."""
    return {ours: copy(f"{theirs}.weight"), f"{ours}_bias": copy(f"{theirs}.bias")}


class Named(Protocol):
    """The part of an architecture file that names tensors."""

    NAMES: Mapping[str, Source]
    PREFIX: str
    """How its tensors' names begin; a checkpoint may leave it off ('' where nothing may be left off)."""
    IGNORED: tuple[str, ...]
    """Endings of tensor names that hold no weights (masks, frequencies)."""


def sources(spec: Spec, plan: Plan, architecture: Named, present: Collection[str] = ()) -> dict[str, Source]:
    """For each weight of the plan, in the plan's order, its Source with concrete tensor names.

    present: the names of the checkpoint's tensors; used only to see whether they were saved without the prefix.
    """
    prefix = architecture.PREFIX
    bare = bool(prefix and present) and not any(name.startswith(prefix) for name in present)
    found = {}
    for weight in plan.weights.values():
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", weight.name)
        pattern = f"layers.{{i}}.{match[2]}" if match else weight.name
        source = architecture.NAMES.get(pattern)
        if source is None:
            raise InternalError(f"the architecture file names no tensor for {pattern}")
        attention = spec.layers[int(match[1])].attention if match else None
        chosen = _named(source, weight, match[1] if match else "", attention, prefix if bare else "")
        while chosen.otherwise is not None and present and chosen.names[0] not in present:
            chosen = _named(chosen.otherwise, weight, match[1] if match else "", attention, prefix if bare else "")
        found[weight.name] = replace(chosen, otherwise=None)
    return found


def _named(source: Source, weight: Weight, layer: str, attention: Attention | None, dropped: str) -> Source:
    """The source of one weight, with its own tensors' names. attention: the layer's; dropped: a prefix to leave off."""
    count, heads, kv_heads = 1, 0, 0
    if "{e}" in source.names[0]:
        count = weight.shape[0]
    if attention is not None and "{h}" in source.names[0]:
        count = weight.shape[0] // attention.head_size
    if attention is not None and source.transform == "split_qkv":
        heads, kv_heads = attention.heads, attention.kv_heads
    names = (name.replace("{i}", layer).replace("{e}", str(n)).replace("{h}", str(n)) for n in range(count) for name in source.names)
    return replace(source, names=tuple(name.removeprefix(dropped) for name in names), heads=heads, kv_heads=kv_heads)


def ignored(spec: Spec, architecture: Named) -> tuple[str, ...]:
    """Endings of tensor names that a checkpoint may hold and the plan does not need."""
    head = architecture.NAMES.get("head")
    return (*architecture.IGNORED, *(head.names if spec.tied and head is not None else ()))
