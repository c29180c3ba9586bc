"""The same text on the CPU and on the GPU: at how many positions both find the same token likeliest, and how far their logits are apart.
For the demo model and random ones, with all layers on the GPU, half of them, one and none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_stages.stage import DEMO, TINY, Stage

from llmcli import engine
from llmcli.backends.backend import Batch
from llmcli.formats.format import PackedTensor
from llmcli.kv import BLOCK, KVCache
from llmcli.models import decoder
from llmcli.models.shapes import SHAPES
from llmcli.models.spec import Spec
from llmcli.offload import runner
from llmcli.offload.place import HOST, Share
from llmcli.offload.steps import pieces
from llmcli.plan import Plan
from llmcli.weights import packed, randoms

TOKENS, TOKENS_DRY = 2000, 2
RANDOM = (("135M", "int4"), ("135M", "int8"), ("1B", "int4"))
SAMPLED = 61
QUANTILES = (0.5, 0.9, 0.99, 0.999)
NEEDED = {"demo": 5.0, "135M": 10.0, "1B": 25.0, "tiny": 0.0}
"""Seconds that a model takes about."""
ONE_TEXT = 500
"""Tokens that belong together: a text of 2,000 takes attention no further, and the CPU longer."""
Floats = npt.NDArray[np.float32]


def run(stage: Stage) -> None:
    if stage.dry:
        random(stage, "tiny", TINY["tiny"], "int4")
        return
    if stage.fits("demo", NEEDED["demo"]):
        with packed.open(DEMO) as file:
            _, plan = engine.read_plan(file, None)
            compare(stage, "demo", file.quantization, plan, file.load(False, None))
    for name, quantization in RANDOM:
        if stage.fits(f"{name} {quantization}", NEEDED[name]):
            random(stage, name, SHAPES[name], quantization)


def random(stage: Stage, name: str, spec: Spec, quantization: str) -> None:
    plan = decoder.plan(spec, min(spec.context, 4096))
    compare(stage, name, quantization, plan, randoms.tensors(plan.weights, quantization))


def compare(stage: Stage, name: str, quantization: str, plan: Plan, weights: Mapping[str, PackedTensor]) -> None:
    layers, count = len(plan.cache), TOKENS_DRY if stage.dry else TOKENS
    ids = np.random.default_rng(12).integers(0, plan.vocab, count).astype(np.int32)
    expected, cpu_seconds = read(plan, weights, (Share(HOST, layers),), ids)
    for on_gpu in sorted({layers, layers // 2, 1, 0}, reverse=True):
        if not stage.fits(f"{name} {quantization} with {on_gpu} layers on the GPU", 0 if stage.dry else NEEDED[name] / 4):
            return
        host, gpu = Share(HOST, layers - on_gpu), Share("cuda:0", on_gpu, pieces(plan)[0])
        found, took = read(plan, weights, tuple(share for share in (host, gpu) if share.layers), ids)
        stage.say(
            "parity", model=name, quantization=quantization, layers=layers, on_gpu=on_gpu, positions=count,
            **difference(found, expected), cpu_seconds=cpu_seconds, seconds=took,
        )  # fmt: skip


def difference(found: Floats, expected: Floats) -> dict[str, Any]:
    """Of logits [positions, vocabulary]: of all of them, where it says largest; quantiles of every SAMPLED-th."""
    largest, sample, logs = [], [], []
    for a, b in zip(found, expected, strict=True):
        apart = np.abs(a - b)
        largest.append(apart.max())
        sample.append(apart[::SAMPLED])
        logs.append(np.abs((a - _log_sum(a)) - (b - _log_sum(b))).max())
    return {
        "same_top": float((found.argmax(1) == expected.argmax(1)).mean()),
        "largest_logit_error": float(max(largest)),
        **{f"logit_error_q{100 * q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(np.concatenate(sample), QUANTILES), strict=True)},
        **{f"largest_of_position_q{100 * q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(largest, QUANTILES), strict=True)},
        "largest_log_probability_error": float(max(logs)),
        "logit_deviation": float(expected[:, ::SAMPLED].std()),
        "same_bits": bool(np.array_equal(found, expected)),
    }


def _log_sum(row: Floats) -> np.float32:
    """The logarithm of the sum of a row's exponentials."""
    most = row.max()
    return np.float32(most + np.log(np.exp(row - most).sum(dtype=np.float64)))


def read(plan: Plan, weights: Mapping[str, PackedTensor], placement: tuple[Share, ...], ids: npt.NDArray[np.int32]) -> tuple[Floats, float]:
    """All logits of texts of up to ONE_TEXT tokens, and the seconds that they took, after loading and compiling."""
    cache = KVCache(plan.cache, 2 * -(-ONE_TEXT // BLOCK) + 1, "f16")
    there = runner.load(plan, weights, cache, placement)
    out = np.empty((len(ids), plan.vocab), np.float32)
    try:
        start = 0.0
        for text in range(0, len(ids), ONE_TEXT):
            sequence = cache.sequence()
            part = ids[text : text + ONE_TEXT]
            out[text : text + len(part)] = there.run(Batch.of(sequence, part, "all")).logits
            start = start or time.perf_counter()
            sequence.close()
        return out, time.perf_counter() - start
    finally:
        there.close()
