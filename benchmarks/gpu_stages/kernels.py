"""Kernels by themselves: matrix products over matrices that follow each other through more memory than the L2 cache holds, and each kind
of operation as a step of a model launches it, over all layers in turn."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from gpu_stages.stage import MIXTURE, TINY, Stage, seconds, start

from llmcli.backends.backend import Batch
from llmcli.backends.cuda.launch import Launch
from llmcli.cost import Costs, Step
from llmcli.models import decoder
from llmcli.models.spec import Spec

ROTATED = 512 << 20
"""Bytes of matrices that a product goes through in turn: several times an L2 cache."""
SHAPES = ("8B", "1B", "135M", "3B", "32B")
PROMPT = 2048
DEPTHS = (512, 4096, 32768)
NEEDED = 1.0
"""Seconds that a product takes about, with compiling; a model's operations take some ten times that."""


def run(stage: Stage) -> None:
    if stage.dry:
        steps(stage, TINY, "int4", (3,), ())
        return products(stage)
    steps(stage, stage.shapes("8B"), "int4", DEPTHS, (512, PROMPT))
    steps(stage, MIXTURE, "int4", (512,), (512, PROMPT))
    products(stage)
    steps(stage, stage.shapes("8B"), "int8", (512,), (PROMPT,))
    steps(stage, stage.shapes("135M"), "int4", (512,), (PROMPT,))


def matrices(spec: Spec) -> list[tuple[int, int]]:
    """[N, K] of a model's products, each once."""
    plan = decoder.plan(spec, 256)
    return list(dict.fromkeys(plan.weights[str(op.weights[0])].shape for op in plan.ops if op.kind == "linear"))


def products(stage: Stage) -> None:
    """One token: bytes a second. Many: operations a second."""
    from gpu_stages.randoms import Source

    from llmcli.backends.cuda.memory import Memory

    memory = Memory(0)
    source = Source(memory, stage.dry)
    for name, spec in stage.shapes(*SHAPES).items():
        for format in ("int4", "int8"):
            for rows, columns in matrices(spec)[: 1 if stage.dry else None]:
                if not stage.fits(f"products of {name} {format}", 0.1 if stage.dry else NEEDED):
                    return
                with memory.errors():
                    one = product(source, format, rows, columns, 1, stage.dry)
                    many = product(source, format, rows, columns, 9 if stage.dry else PROMPT, stage.dry)
                matrix = {"shape": name, "format": format, "rows": rows, "columns": columns}
                stage.say("matrix by vector", **matrix, **one, share_of_copy=stage.share("copy", one["bytes_per_s"]))
                stage.say("matrix by matrix", **matrix, **many, share_of_bf16=stage.share("bf16", many["operations_per_s"]))


def product(source: Any, format: str, rows: int, columns: int, tokens: int, dry: bool) -> dict[str, float]:
    """A product's time, over as many matrices as ROTATED bytes hold (for many tokens, over a few)."""
    from llmcli.backends.cuda import weights
    from llmcli.backends.cuda.kernels import linear, quantize

    memory, own = source.memory, weights.place(format, rows, columns)
    count = 2 if dry else min(4000, math.ceil((ROTATED if tokens == 1 else ROTATED // 8) / own.size))
    data = source.matrix(format, rows, columns, count)
    room = -(-tokens // linear.ROOM) * linear.ROOM
    records = memory.array(room * quantize.row_bytes(columns), np.uint8)
    x, out = source.numbers(tokens * columns), memory.array(tokens * rows, np.float32)
    step = memory.constant(np.array([tokens], np.int32))
    kernel, grid, block = quantize.launch(tokens, columns)
    start(memory, [Launch(kernel, grid, block, (step, 0, x, 0, columns, columns, records))])
    matrices = [data[i * own.size : (i + 1) * own.size] for i in range(count)]
    launches = [linear.linear(format, own, tokens, step, 0, matrix, records, (out, 0, rows)) for matrix in matrices]
    took = seconds(memory, lambda: start(memory, launches), dry) / count
    return {
        "tokens": tokens, "us": took * 1e6, "bytes_per_s": own.size / took, "operations_per_s": 2 * rows * columns * tokens / took
    }  # fmt: skip


def steps(stage: Stage, shapes: dict[str, Spec], quantization: str, depths: tuple[int, ...], prompts: tuple[int, ...]) -> None:
    """What each kind of operation takes in a step of one token at these depths, and in a prompt."""
    from gpu_stages.randoms import Model

    for name, spec in shapes.items():
        if not stage.fits(f"operations of {name} {quantization}", 0.1 if stage.dry else 10 * NEEDED):
            return
        model = Model(spec, quantization, min(spec.context, max((*depths, *prompts)) + 256), max((1, *prompts)), stage.dry)
        for depth in depths:
            of_step(stage, model, name, quantization, depth, 1)
        for count in prompts:
            of_step(stage, model, name, quantization, 0, count)
        model.close()


def of_step(stage: Stage, model: Any, name: str, quantization: str, depth: int, tokens: int) -> None:
    from llmcli.backends.cuda.buffers import height
    from llmcli.backends.cuda.lower import LOWER

    text = model.text(depth)
    ids = np.random.default_rng(1).integers(0, model.plan.vocab, tokens).astype(np.int32)
    model.runner.run(Batch.of(text, ids))  # the step's input is on the GPU now
    lowering, costs, step = model.runner._lowering, Costs(model.plan, model.weights, model.cache), Step(depth, tokens, 1)
    groups: dict[str, list[Any]] = {}
    for number, op in lowering.ops:
        key = op.kind
        if op.kind == "linear":
            key += " {}x{}".format(*model.weights[str(op.weights[0])].shape)
        elif op.kind == "cache_write" and "frequencies" in op.params:
            key += " and rope"
        elif lowering.quantizes(op):
            key += " and quantize"
        groups.setdefault(key, []).append((number, op))
    for kind, ops in groups.items():
        if not stage.fits(f"{kind} of {name}", 0.05 if stage.dry else 0.5):
            break
        launches = []
        for number, op in ops:
            rows = 1 if lowering.of_outputs(op) else height(tokens)
            launches += LOWER[op.kind](lowering, op, number, rows)
        if not launches:
            continue
        took = seconds(model.memory, partial(start, model.memory, launches), stage.dry)
        cost = [costs.of(op, step) for _, op in ops]
        size, operations = sum(c.bytes for c in cost), sum(c.int8 + c.f32 for c in cost)
        stage.say(
            "operation", shape=name, quantization=quantization, kind=kind, depth=depth, tokens=tokens, launches=len(launches),
            us=took * 1e6, bytes=size, share_of_copy=stage.share("copy", size / took) if size else None,
            operations_per_s=operations / took if operations else None,
            share_of_bf16=stage.share("bf16", operations / took) if operations and tokens > 1 else None,
        )  # fmt: skip
    text.close()
