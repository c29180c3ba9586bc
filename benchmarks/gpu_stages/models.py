"""Whole steps of random models: tokens one by one, and prompts. By the clock of the GPU (a recorded step, again and again) and by that
of this machine (steps as a user has them, with what goes up and comes back)."""

from __future__ import annotations

import statistics
import time

import numpy as np
from gpu_stages.stage import Stage, seconds

from llmcli.backends.backend import Batch
from llmcli.cost import Costs, Step
from llmcli.engine import MOST_TOKENS
from llmcli.offload.steps import PIECES

SHAPES = ("8B", "1B", "135M", "3B", "32B")
"""The most telling ones first."""
QUANTIZATIONS = ("int4", "int8")
DEPTH, PROMPTS, CONTEXT = 512, (512, 2048), 4608
DEEP = 4096
"""Another depth for tokens one by one."""
TOKENS = 32
NEEDED = 8.0
"""Seconds that a model takes about."""


def run(stage: Stage) -> None:
    from gpu_stages.randoms import Model

    for name, spec in stage.shapes(*SHAPES).items():
        for quantization in ("int4",) if stage.dry else QUANTIZATIONS:
            if not stage.fits(f"{name} {quantization}", 0.1 if stage.dry else NEEDED):
                return
            start = time.perf_counter()
            most = 2 if stage.dry else PIECES[0]
            model = Model(spec, quantization, 512 if stage.dry else CONTEXT, most, stage.dry)
            stage.say("made", shape=name, quantization=quantization, seconds=time.perf_counter() - start, bytes=model.bytes)
            for depth in (3,) if stage.dry else (DEPTH, DEEP):
                decode(stage, model, name, quantization, depth)
            for count in (3,) if stage.dry else PROMPTS:
                prompt(stage, model, name, quantization, count)
            model.close()


def decode(stage: Stage, model, name: str, quantization: str, depth: int) -> None:
    """Tokens one by one behind `depth` others."""
    count, rng = 1 if stage.dry else TOKENS, np.random.default_rng(depth)
    text = model.text(depth)
    ids = rng.integers(0, model.plan.vocab, (count + 3, 1)).astype(np.int32)
    start = time.perf_counter()
    model.runner.run(Batch.of(text, ids[0]))
    first = time.perf_counter() - start
    for token in ids[1:3] if not stage.dry else ():
        model.runner.run(Batch.of(text, token))
    start = time.perf_counter()
    for token in ids[3:]:
        model.runner.run(Batch.of(text, token))
    wall = (time.perf_counter() - start) / count
    step = model.runner._steps[1, 1]
    device = seconds(model.memory, step, stage.dry, record=False)
    size = Costs(model.plan, model.weights, model.cache).step(Step(text.length - 1, 1, 1)).bytes
    stage.say(
        "decode", shape=name, quantization=quantization, depth=depth, tokens_per_s=1 / wall, device_tokens_per_s=1 / device,
        bytes=size, share_of_copy=stage.share("copy", size / wall), device_share_of_copy=stage.share("copy", size / device),
        recorded=step.recorded, first_step_s=first,
    )  # fmt: skip
    text.close()


def prompt(stage: Stage, model, name: str, quantization: str, count: int) -> None:
    """A prompt in the engine's pieces, in half of them, and in the CPU's."""
    ids = np.random.default_rng(count).integers(0, model.plan.vocab, count).astype(np.int32)
    whole = model.runner._most
    for piece in (whole, *(n for n in (whole // 2, MOST_TOKENS) if n < min(whole, count) and not stage.dry)):
        model.runner._most = piece
        took = []
        for _ in range(1 if stage.dry else 5):
            text, start = model.text(0), time.perf_counter()
            model.runner.run(Batch.of(text, ids))
            took.append(time.perf_counter() - start)
            text.close()
        fair = statistics.median(took[2:] or took)  # the first compiles, the second records
        cost = Costs(model.plan, model.weights, model.cache).step(Step(0, count, 1))
        rate = (cost.int8 + cost.f32) / fair
        stage.say(
            "prompt", shape=name, quantization=quantization, tokens=count, piece=min(piece, count), tokens_per_s=count / fair,
            operations_per_s=rate, share_of_bf16=stage.share("bf16", rate), first_s=took[0],
        )  # fmt: skip
    model.runner._most = whole
