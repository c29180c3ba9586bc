"""What the stages of gpu.py share: what they are told, how they tell what they found, and timing on the GPU.

A stage is a module of this folder with `run(stage)`, in a process of its own. What it finds are rows, flat and named, each written as
soon as it is known, so that a stage that fails or takes too long has told what it found before.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from llmcli.backends.cuda.launch import Launch
from llmcli.models.shapes import SHAPES
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Norm, Rope, Spec

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "llmcli/demo/demo-int8.safetensors"
ROUNDS = 5
"""Measurements, of which the median counts."""
SHORT = 0.02
"""Seconds that a measurement lasts about."""


def _small(experts: Experts | None = None) -> Spec:
    layer = Layer(Attention(1, 1, 8, 0.3), None if experts else Mlp(16), experts, Rope(8))
    return Spec(24, 16, 512, Norm(), (layer,), True)


def _mixture(layers: int) -> Spec:
    """Layers of a model of 30 billion parameters in 128 experts, 8 of them for a token."""
    layer = Layer(Attention(32, 4, 128, 128**-0.5, qk_norm="head"), experts=Experts(128, 8, 768), rope=Rope(128, 1e6))
    return Spec(151936, 2048, 40960, Norm(), (layer,) * layers, False)


TINY = {"tiny": _small(), "tiny-experts": _small(Experts(2, 1, 8))}
MIXTURE = {"30B-A3B": _mixture(4)}


@dataclass
class Stage:
    """limit: seconds that it has. dry: with the smallest of everything, for the simulator. known: rows of stages before."""

    out: TextIO
    limit: float
    dry: bool
    known: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.start)

    def say(self, what: str, **figures: Any) -> None:
        print(json.dumps({"what": what, **{name: tidy(value) for name, value in figures.items()}}), file=self.out, flush=True)

    def fits(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; says what is left out where they are not."""
        if self.left < seconds:
            self.say("left out", item=what, left_s=self.left, needed_s=seconds)
        return self.left >= seconds

    def share(self, name: str, value: float) -> float | None:
        """A rate as a share of the machine's, where that was measured."""
        return value / self.known[name] if self.known.get(name) else None

    def shapes(self, *names: str) -> dict[str, Spec]:
        return {"tiny": TINY["tiny"]} if self.dry else {name: SHAPES[name] for name in names}


def tidy(value: Any) -> Any:
    """Five digits are enough; JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def quicker_simulator() -> None:
    """Numba's own scheduler of a block's threads takes 5 ms and more for each barrier."""
    sys.path.insert(0, str(ROOT / "tests/cuda/simulated"))
    import blocks
    from numba.cuda.simulator import kernel

    kernel.BlockManager = blocks.Block


def start(memory: Any, launches: Iterable[Launch]) -> None:
    for launch in launches:
        launch.kernel[launch.grid, launch.block, memory.stream](*launch.args)


def seconds(memory: Any, work: Callable[[], None], dry: bool = False, record: bool = True) -> float:
    """Seconds that `work` takes on the GPU: recorded as a graph (one long call and a graph itself need that no more) and repeated, by the
    GPU's own clock;
    the median of some measurements. memory: llmcli.backends.cuda.memory.Memory. In the simulator: the seconds of one call, which mean
    nothing."""
    with memory.errors():
        start = time.perf_counter()
        work()
        memory.stream.synchronize()
        if dry:
            return time.perf_counter() - start
        from llmcli.backends.cuda import graph

        replay = (graph.capture(memory.stream, work) if record else None) or work
        replay()
        count = max(1, min(200, math.ceil(SHORT / max(_lasts(memory, replay, 1), 1e-6))))
        return statistics.median(_lasts(memory, replay, count) / count for _ in range(ROUNDS))


def _lasts(memory: Any, work: Callable[[], None], count: int) -> float:
    from llmcli.backends.cuda.memory import cuda

    first, last = cuda.event(), cuda.event()
    first.record(memory.stream)
    for _ in range(count):
        work()
    last.record(memory.stream)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000
