"""How fast a model runs on this machine, and what share of the machine that is: `llm bench`.

A test is a prompt of N tokens, or N tokens one after the other, at some depth: behind a text that is already in the cache. Tokens
are random and nothing is sampled; the statistics that sampling needs (the operation `top`) are part of a step and counted.
Speeds are compared with what the machine reads and multiplies at most, measured in the same run (backends/cpu/measure.py).
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcli import engine, estimate, memory
from llmcli.backends import backend as backends
from llmcli.backends.backend import Batch, Notify
from llmcli.backends.cpu import run as cpu
from llmcli.backends.cpu.measure import Limits, limits
from llmcli.cost import Cost, Costs, Step
from llmcli.errors import ContextOverflow, NotFound
from llmcli.formats.format import PackedTensor
from llmcli.interrupt import stopping
from llmcli.kv import KVCache, Sequence
from llmcli.models import architectures, decoder
from llmcli.models.shapes import SHAPES
from llmcli.models.spec import Spec
from llmcli.plan import Op, Plan
from llmcli.weights import packed, randoms, store

WARM = 4
"""Tokens computed before the first measurement of a generation; before that of a prompt it is the whole prompt."""
TIMED = 16
"""Tokens of a generation whose operations are timed one by one, at most."""

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


@dataclass(frozen=True)
class Test:
    """prompt tokens in one step, or gen tokens one by one (the other is 0), behind `depth` others. logits: 'last' or 'all' of a
    prompt's."""

    prompt: int
    gen: int
    depth: int
    logits: str = "last"

    @property
    def tokens(self) -> int:
        return self.prompt or self.gen

    def steps(self) -> list[Step]:
        """As the backend computes them."""
        if not self.prompt:
            return [Step(self.depth + i, 1, 1) for i in range(self.gen)]
        starts = range(0, self.prompt, engine.MOST_TOKENS)
        sizes = [min(engine.MOST_TOKENS, self.prompt - start) for start in starts]
        outputs = sizes if self.logits == "all" else [0] * (len(sizes) - 1) + [1]
        return [Step(self.depth + start, size, rows) for start, size, rows in zip(starts, sizes, outputs, strict=True)]


class Subject:
    """A model that is measured. file: its packed file, '' for a random model. Close it."""

    def __init__(
        self,
        name: str,
        file: str,
        plan: Plan,
        weights: Mapping[str, PackedTensor],
        kv: str,
        threads: int | None,
        notify: Notify | None,
    ) -> None:
        backends.check(cpu, plan, weights)
        self.name, self.file, self.plan = name, file, plan
        self.cache = KVCache(plan.cache, estimate.blocks(plan), kv)
        self.size = sum(len(tensor.data) for tensor in weights.values())
        self.costs = Costs(plan, weights, self.cache)
        self.runner = cpu.load(plan, weights, self.cache, threads or 0, engine.MOST_TOKENS, notify)
        self._rng = np.random.default_rng(0)

    def batch(self, sequence: Sequence, count: int, logits: str = "last") -> Batch:
        """Random tokens that follow in a text."""
        batch = Batch.of(sequence, self._rng.integers(0, self.plan.vocab, count).astype(np.int32), logits)
        batch.check(self.plan)
        return batch

    @contextmanager
    def text(self, length: int) -> Iterator[Sequence]:
        """A text of so many tokens in the cache."""
        sequence = self.cache.sequence()
        try:
            if length:
                self.runner.run(self.batch(sequence, length, "none"))
            yield sequence
        finally:
            sequence.close()

    def close(self) -> None:
        self.runner.close()


def load(
    reference: str | None, context: int, *, threads: int | None = None, kv: str = "auto", verify: bool = True, notify: Notify | None = None
) -> Subject:
    """A model that is here. Raises as engine.load does; ContextOverflow where it was not made for so many tokens."""
    with packed.open(store.find(reference)) as file:
        _check_context(Spec.from_json(file.spec), context)
        _, plan = engine.read_plan(file, context)
        kind = estimate.cache_type(file.quantization, kv)
        engine.require_memory(file, plan, kind)
        return Subject(f"{file.name}:{file.quantization}", str(file.path), plan, file.load(verify), kind, threads, notify)


def random(
    name: str, spec: Spec, quantization: str, context: int, *, threads: int | None = None, kv: str = "auto", notify: Notify | None = None
) -> Subject:
    """A model of this shape with random weights, made in memory. Raises OutOfMemory, UnsupportedModel, ContextOverflow."""
    _check_context(spec, context)
    plan = decoder.plan(spec, context)
    kind = estimate.cache_type(quantization, kv)
    needed = estimate.Model(plan, tokenizer=0).needed(randoms.size_of(plan.weights, quantization), kind)
    memory.check(sum(needed.values()), f"a model of shape {name}", "Measure fewer tokens, or a smaller shape")
    return Subject(f"random-{name}:{quantization}", "", plan, randoms.tensors(plan.weights, quantization), kind, threads, notify)


def shape(wanted: str) -> tuple[str, Spec]:
    """The name and description of a shape: one of models/shapes.py, or that of a config.json. Raises NotFound, CorruptFile,
    UnsupportedModel."""
    if wanted in SHAPES:
        return wanted, SHAPES[wanted]
    path = Path(wanted)
    if not path.is_file():
        raise NotFound(f"no shape {wanted}", f"there are {', '.join(SHAPES)}, and files like a model's config.json", "Change --shape")
    data = path.read_bytes()
    return path.parent.resolve().name, architectures.describe(engine.json_object(data, str(path)))[0]


def _check_context(spec: Spec, context: int) -> None:
    if context > spec.context:
        raise ContextOverflow(f"{context:,} tokens", f"the model was made for up to {spec.context:,}", "Measure fewer")


def records(
    subject: Subject, tests: list[Test], repeat: int, ops: bool, progress: Progress, notify: Notify | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A record for each test, in llama-bench's field names and some more (docs/json.md), and what the machine can do at most. Raises
    NumericalError, Stopped."""
    samples, tables = [], []
    for number, test in enumerate(tests):
        progress(f"{'prompt' if test.prompt else 'generation'} of {test.tokens:,}", number, len(tests) + 1)
        with stopping(subject.runner.stop), subject.text(test.depth) as sequence:
            samples.append(_samples(subject, test, sequence, repeat))
            tables.append(_operations(subject, test, sequence, repeat) if ops else None)
    most = memory.peak()
    progress("the machine", len(tests), len(tests) + 1)
    limit = limits(subject.runner.threads, subject.size, notify)
    found = [_record(subject, test, times, limit, most) for test, times in zip(tests, samples, strict=True)]
    for record, table in zip(found, tables, strict=True):
        if table is not None:
            record["ops"] = table
    progress("done", len(tests) + 1, len(tests) + 1)
    return found, asdict(limit)


def _samples(subject: Subject, test: Test, sequence: Sequence, repeat: int) -> list[float]:
    """Seconds of each of `repeat` measurements."""

    def once(gen: int) -> float:
        sequence.truncate(test.depth)
        start = time.perf_counter()
        if test.prompt:
            subject.runner.run(subject.batch(sequence, test.prompt, test.logits))
        for _ in range(gen):
            subject.runner.run(subject.batch(sequence, 1))
        return time.perf_counter() - start

    once(min(WARM, test.gen))
    return [once(test.gen) for _ in range(repeat)]


def _operations(subject: Subject, test: Test, sequence: Sequence, repeat: int) -> list[dict[str, Any]]:
    """Where the time goes: a record for each kind of operation, and for each kind of matrix, longest first. Times are medians over
    prompts, or over tokens of a generation."""
    wholes = [test.steps()] if test.prompt else [[step] for step in test.steps()[:TIMED]]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    costs: dict[tuple[str, str], Cost] = defaultdict(Cost)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    for _ in range(repeat):
        sequence.truncate(test.depth)
        for whole in wholes:
            took: dict[tuple[str, str], float] = defaultdict(float)
            for step in whole:
                rows = "all" if step.outputs == step.tokens else "last" if step.outputs else "none"
                for op, spent in subject.runner.times(subject.batch(sequence, step.tokens, rows)):
                    key = op.kind, _part(op)
                    took[key] += spent
                    costs[key] += subject.costs.of(op, step)
                    calls[key] += 1
            for key, spent in took.items():
                seconds[key].append(spent)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    total, count, tokens = sum(medians.values()), repeat * len(wholes), test.prompt or 1
    return [
        {
            "kind": key[0],
            "part": key[1],
            "calls": calls[key] // count,
            "seconds_per_token": took / tokens,
            "share": took / total,
            **_rates(costs[key] / count, took),
        }
        for key, took in sorted(medians.items(), key=lambda item: -item[1])
    ]


def _part(op: Op) -> str:
    """Which of a layer's matrices it is, '' for operations without."""
    return op.label.rpartition(".")[2] if op.kind in ("linear", "experts") else ""


def _rates(cost: Cost, seconds: float) -> dict[str, float]:
    return {
        "bytes_per_second": cost.bytes / seconds,
        "int8_operations_per_second": cost.int8 / seconds,
        "f32_operations_per_second": cost.f32 / seconds,
        "int16_operations_per_second": cost.int16 / seconds,
    }


def _record(subject: Subject, test: Test, seconds: list[float], limit: Limits, most: int) -> dict[str, Any]:
    speeds = [test.tokens / taken for taken in seconds]
    cost = sum((subject.costs.step(step) for step in test.steps()), Cost()) / test.tokens
    rates = _rates(cost, statistics.median(seconds) / test.tokens)
    deviation = statistics.stdev if len(seconds) > 1 else lambda values: 0.0
    return {
        "cpu_info": limit.cpu,
        "backends": "CPU",
        "model_filename": subject.file,
        "model_type": subject.name,
        "model_size": subject.size,
        "model_n_params": subject.plan.parameters,
        "n_batch": engine.MOST_TOKENS,
        "n_ubatch": engine.MOST_TOKENS,
        "n_threads": limit.threads,
        "type_k": subject.cache.dtype,
        "type_v": subject.cache.dtype,
        "n_prompt": test.prompt,
        "n_gen": test.gen,
        "n_depth": test.depth,
        "test_time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(statistics.mean(seconds) * 1e9),
        "stddev_ns": round(deviation(seconds) * 1e9),
        "avg_ts": statistics.mean(speeds),
        "stddev_ts": deviation(speeds),
        "samples_ns": [round(taken * 1e9) for taken in seconds],
        "samples_ts": speeds,
        "logits": test.logits,
        "median_ts": statistics.median(speeds),
        "spread": (max(speeds) - min(speeds)) / statistics.median(speeds),
        "bytes_per_token": cost.bytes,
        "int8_operations_per_token": cost.int8,
        "f32_operations_per_token": cost.f32,
        "int16_operations_per_token": cost.int16,
        **rates,
        "read_share": rates["bytes_per_second"] / limit.model_read,
        "memory_read_share": rates["bytes_per_second"] / limit.memory_read,
        "dot_share": rates["int8_operations_per_second"] / limit.int8_operations,
        "peak_memory_bytes": most,
    }
