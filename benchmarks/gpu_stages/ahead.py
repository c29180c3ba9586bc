"""All kernels that the stages start on a GPU, compiled where none is: `gpu.py --compile sm_90`. The folder of kernels then goes along."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from gpu_stages.stage import DEMO, MIXTURE, ROOT

from llmcli import engine
from llmcli.backends.cuda import objects, warmup
from llmcli.backends.cuda.objects import Key
from llmcli.cli.warmup import architecture
from llmcli.models import decoder
from llmcli.models.shapes import SHAPES
from llmcli.plan import Plan
from llmcli.weights import packed
from llmcli.weights.randoms import format_of

CONTEXT, MOST_TOKENS = 512, 2048
"""Kernels depend on neither of them, but on whether one token is computed or many."""


def models() -> Iterator[tuple[Plan, Mapping[str, str], str]]:
    """Plans, formats of their weights, and the cache's type."""
    sys.path.insert(0, str(ROOT / "tests/cuda"))
    import devices
    import test_gpu

    for spec in (SHAPES | MIXTURE).values():
        plan = decoder.plan(spec, CONTEXT)
        for quantization in ("int4", "int8"):
            yield plan, {name: format_of(weight, quantization) for name, weight in plan.weights.items()}, "f16"
    with packed.open(DEMO) as file:
        _, plan = engine.read_plan(file, None)
        yield plan, {name: file.entries[name].format for name in plan.weights}, "f16"
    for name, weights, kv in test_gpu.CASES:
        model = devices.made(devices.SPECS[name], weights, kv)
        yield model.plan, {name: tensor.format for name, tensor in model.weights.items()}, kv


def compile_all(name: str) -> None:
    """name: of an architecture, such as sm_90."""
    keys: dict[Key, None] = {}
    for plan, formats, kv in models():
        keys |= dict.fromkeys(warmup.kernels(plan, formats, kv, MOST_TOKENS))
    objects.load(keys, architecture(name), print, lambda name, done, total: print(f"{done}/{total} {name}", flush=True))
