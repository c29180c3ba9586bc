"""What the default model is and needs: read once from the head of its file, for several checks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Default:
    """name: with its quantization; memory: bytes with a full context; kernels: keys of backends/cpu/objects.py."""

    name: str
    memory: int
    kernels: Sequence[Any]


@functools.cache
def default() -> Default:
    """Raises what finding and opening the model raises."""
    from llmcli import engine, estimate
    from llmcli.backends.cpu import choice
    from llmcli.weights import packed, store

    with packed.open(store.find(None)) as file:
        plan = engine.read_plan(file, None)[1]
        cache = estimate.cache_type(file.quantization)
        formats = {name: file.entries[name].format for name in plan.weights}
        unsupported = any(choice.supports(op.kind, "") for op in plan.ops)
        ops = [] if unsupported else choice.operations(plan, formats)
        kernels = choice.kernels(ops, formats, cache) if ops else []
        return Default(f"{file.name}:{file.quantization}", sum(engine.memory_of(file, plan, cache).values()), kernels)
