"""Compiling ahead what common models need, so that no first run waits: `llm warmup`. It can be for a GPU that is elsewhere, because kernels
are files. What a model needs besides is compiled when it is first run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmcli import places
from llmcli.backends.backend import Notify
from llmcli.backends.cpu import objects as cpu_objects
from llmcli.backends.cpu import warmup as cpu
from llmcli.backends.cuda import device, objects
from llmcli.errors import DeviceError, MissingExtra, UsageError

DEVICES = ("auto", "cpu", "cuda")
SHAPES = (*cpu.SHAPES, (128, 5), (128, 8))
"""Head size, and heads that share a key head, of models on GPUs: some are larger than those on CPUs."""
QUANTIZATIONS, CACHE = ("int4", "int8"), "f16"


@dataclass(frozen=True)
class Ready:
    """target: whose kernels, such as 'this CPU' or 'sm_90'; seconds: that compiling took; folder: where they are kept."""

    target: str
    kernels: int
    compiled: int
    seconds: float
    folder: Path


def warmup(
    name: str, capability: tuple[int, int] | None, progress: objects.Progress | None = None, notify: Notify | None = None
) -> Iterator[Ready]:
    """Compiles and keeps kernels, for one processor after the other. name: 'cpu', 'cuda', or 'auto' for this CPU and, where one is used,
    its GPU; capability: only those of such a GPU. notify hears what cannot be kept. Raises UsageError, DeviceError, MissingExtra."""
    if name not in DEVICES:
        raise UsageError(f"no device {name!r}", f"there are {', '.join(DEVICES)}", "Change --device")
    if capability and name == "cpu":
        raise UsageError("--gpu-arch with --device cpu", "that device is no GPU", "Leave one of them out")
    capabilities = _capabilities(name, capability)
    if name != "cuda" and not capability:
        folder = places.kernels() / cpu_objects.maker()
        yield _ready("this CPU", cpu.count(), folder, lambda report: cpu.warmup(report, notify), progress)
    for found in capabilities:
        keys, folder = gpu_kernels(), places.kernels() / objects.maker()
        yield _ready(objects.architecture(found), len(keys), folder, partial(objects.load, keys, found, notify), progress)


def _capabilities(name: str, capability: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs that are meant, each once."""
    if capability is None:
        try:
            return [] if name == "cpu" else list(dict.fromkeys(gpu.capability for gpu in device.usable()))
        except (DeviceError, MissingExtra):
            if name == "cuda":
                raise
            return []
    if capability < device.LEAST:
        least = objects.architecture(device.LEAST)
        raise UsageError(f"--gpu-arch {objects.architecture(capability)}", f"kernels need {least} (Ampere) or later", "Change it")
    if device.compiler() is None:
        raise MissingExtra("--gpu-arch needs a package that is not installed", "numba-cuda", "pip install 'llmcli[cuda]'")
    return [capability]


def gpu_kernels() -> list[objects.Key]:
    """Those of common models on a GPU."""
    from llmcli.backends.cuda import warmup as cuda
    from llmcli.engine import MOST_TOKENS
    from llmcli.models import decoder
    from llmcli.models.spec import Attention, Layer, Mlp, Norm, Rope, Spec
    from llmcli.weights.randoms import format_of

    # Kernels know no sizes but those of heads: one small model has all kinds of layers.
    kinds = [*((size, group, "") for size, group in SHAPES), (128, 2, "head")]
    layers = [Layer(Attention(group, 1, size, 1.0, qk_norm=norm), Mlp(64), rope=Rope(size)) for size, group, norm in kinds]
    plan = decoder.plan(Spec(64, 64, 256, Norm(), tuple(layers)), 256)
    found: dict[objects.Key, None] = {}
    for quantization in QUANTIZATIONS:
        formats = {name: format_of(weight, quantization) for name, weight in plan.weights.items()}
        found |= dict.fromkeys(cuda.kernels(plan, formats, CACHE, MOST_TOKENS))
    return list(found)


def _ready(target: str, count: int, folder: Path, load: Callable[[objects.Progress], Any], progress: objects.Progress | None) -> Ready:
    compiled = 0

    def report(what: str, done: int, total: int) -> None:
        nonlocal compiled
        compiled = done
        if progress:
            progress(what, done, total)

    start = time.perf_counter()
    load(report)
    return Ready(target, count, compiled, time.perf_counter() - start, folder)
