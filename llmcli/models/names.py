"""How a plan's weight is made from a checkpoint's tensors: data only, `weights/convert.py` carries it out.

An architecture file's NAMES maps a pattern of our weight name to a Source whose tensor names are patterns too:
{i} stands for the layer, {e} for each expert in turn. `sources` fills them in for one plan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from llmcli.errors import InternalError
from llmcli.models.spec import Spec
from llmcli.plan import Plan

TRANSFORMS: dict[str, str] = {
    "copy": "the one tensor as it is",
    "plus_one": "the one tensor, a norm's weight, plus 1",
    "transpose": "the one tensor [K, N] becomes [N, K]",
    "concat": "the tensors' rows (or a bias's elements) one after the other, in the order of `names`",
    "split_qkv": "the one tensor's rows, interleaved as [kv heads][its q heads, k, v][D], become q | k | v; the same for a bias",
    "stack": "names[e] [N, K] become [E, N, K] (or biases [N] become [E, N])",
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


def copy(name: str) -> Source:
    return Source("copy", (name,))


def plus_one(name: str) -> Source:
    return Source("plus_one", (name,))


def transpose(name: str) -> Source:
    return Source("transpose", (name,))


def split_qkv(name: str) -> Source:
    return Source("split_qkv", (name,))


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
        layer = match[1] if match else ""
        experts = range(weight.shape[0]) if weight.kind == "experts" else range(1)
        names = tuple(name.replace("{i}", layer).replace("{e}", str(e)) for e in experts for name in source.names)
        if bare:
            names = tuple(name.removeprefix(prefix) for name in names)
        found[weight.name] = replace(source, names=names)
        if source.transform == "split_qkv":
            attention = spec.layers[int(layer)].attention
            found[weight.name] = replace(source, names=names, heads=attention.heads, kv_heads=attention.kv_heads)
    return found


def ignored(spec: Spec, architecture: Named) -> tuple[str, ...]:
    """Endings of tensor names that a checkpoint may hold and the plan does not need."""
    head = architecture.NAMES.get("head")
    return (*architecture.IGNORED, *(head.names if spec.tied and head is not None else ()))
