"""`llm bench`: what it counts, what it measures, random models of any shape."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli import benchmark, cost
from llmcli.backends.backend import Batch, get
from llmcli.backends.cpu import measure
from llmcli.backends.fuse import EXPERTS
from llmcli.errors import ContextOverflow, NotFound
from llmcli.formats import format as formats
from llmcli.kv import KVCache
from llmcli.models import decoder, shapes
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Norm, Rope, Spec
from llmcli.weights import randoms
from random_model import CONFIG
from test_commands import answer, llm, refused

LLAMA_BENCH = """cpu_info backends model_filename model_type model_size model_n_params n_batch n_ubatch n_threads type_k type_v n_prompt
n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts""".split()

SEQUENTIAL = Layer(Attention(4, 2, 16, 0.25), Mlp(200), rope=Rope(16))
PARALLEL = Layer(Attention(4, 1, 32, 0.2, bias=True), Mlp(90, "gelu", gated=False, bias=True), residual="parallel", shared_norm=True)
SPARSE = Layer(Attention(4, 4, 16, 0.25, window=9), experts=Experts(5, 2, 70))
SPECS = {
    "llama": Spec(300, 72, 600, Norm(), (SEQUENTIAL,) * 3),
    "parallel": Spec(301, 64, 600, Norm("layer", bias=True), (PARALLEL,) * 2, tied=False, positions=600),
    "experts": Spec(300, 64, 600, Norm(), (SPARSE,) * 2),
}


@pytest.mark.parametrize("quantization", ["int4", "int8", "none"])
@pytest.mark.parametrize("name", SPECS)
def test_random_models_compute_something(name: str, quantization: str) -> None:
    """Logits are finite, different, and of the size of a model's."""
    plan = decoder.plan(SPECS[name], 300)
    weights = randoms.tensors(plan.weights, quantization)
    assert {n: tensor.shape for n, tensor in weights.items()} == {n: weight.shape for n, weight in plan.weights.items()}
    assert sum(len(tensor.data) for tensor in weights.values()) == randoms.size_of(plan.weights, quantization)
    cache = KVCache(plan.cache, 2, "f32")
    runner = get("reference").load(plan, weights, cache)
    logits = runner.run(Batch.of(cache.sequence(), np.arange(40, dtype=np.int32), "all")).logits
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std(axis=-1).min() and logits.std(axis=-1).max() < 10
    assert len(np.unique(logits, axis=0)) == 40


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_random_weights_are_like_a_models(quantization: str) -> None:
    """Deviation K ** -0.5, and not the same row over and over."""
    plan = decoder.plan(SPECS["llama"], 300)
    weights = randoms.tensors(plan.weights, quantization)
    for name, weight in plan.weights.items():
        if weight.kind == "matrix":
            tensor = weights[name]
            values = formats.get(tensor.format).unpack(tensor.data, *tensor.shape)
            assert abs(values.std() * math.sqrt(values.shape[1]) - 1) < 0.2
            assert len(np.unique(values, axis=0)) == len(values)


@pytest.mark.parametrize(("name", "parameters"), [("135M", 134.5e6), ("1B", 1.1e9), ("3B", 3.21e9), ("8B", 8.03e9), ("32B", 32.76e9)])
def test_shapes_are_those_of_known_models(name: str, parameters: float) -> None:
    assert abs(decoder.plan(shapes.SHAPES[name], 512).parameters / parameters - 1) < 0.01


def test_a_shape_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    name, spec = benchmark.shape(str(tmp_path / "config.json"))
    assert name == tmp_path.name and spec.hidden == CONFIG["hidden_size"]
    with pytest.raises(NotFound, match="135M"):
        benchmark.shape("135N")


# What is counted


def costs(name: str) -> tuple[Any, cost.Costs]:
    plan = decoder.plan(SPECS[name], 600)
    return plan, cost.Costs(plan, randoms.tensors(plan.weights, "int8"), KVCache(plan.cache, 3, "f16"))


def test_a_token_reads_every_matrix_once() -> None:
    plan, counted = costs("llama")
    found = counted.step(cost.Step(start=99, tokens=1, outputs=1))
    matrices = {n: w for n, w in plan.weights.items() if w.kind in ("matrix", "embedding")}
    row = len(counted.weights["embedding"].data) / 300
    cached = 3 * 2 * 16 * 2 * 2  # layers, kv heads, head size, keys and values, bytes of an f16
    want = sum(len(counted.weights[name].data) for name in matrices) + row + 100 * cached + cached
    assert found.bytes == pytest.approx(want)
    assert found.int8 == 2 * sum(math.prod(weight.shape) for weight in matrices.values())
    assert found.f32 == 3 * 4 * 4 * 16 * 100


def test_a_prompt_computes_what_its_tokens_do() -> None:
    _, counted = costs("experts")
    whole = counted.step(cost.Step(start=10, tokens=50, outputs=50))
    single = sum((counted.step(cost.Step(start=10 + i, tokens=1, outputs=1)) for i in range(50)), cost.Cost())
    assert whole.int8 == pytest.approx(single.int8) and whole.f32 == pytest.approx(single.f32)
    assert whole.bytes < single.bytes / 10


def test_the_steps_of_experts_cost_what_experts_do() -> None:
    _, counted = costs("experts")
    op, step = next(op for op in counted.plan.ops if op.kind == "experts"), cost.Step(start=0, tokens=3, outputs=1)
    parts = [counted.of(replace(op, kind=f"experts_{kind}"), step) for kind in EXPERTS]
    assert sum(parts, cost.Cost()) == counted.of(op, step) and sum(part.bytes > 0 for part in parts) == 2


def test_the_steps_of_a_prompt() -> None:
    assert benchmark.Test(600, 0, 7).steps() == [cost.Step(7, 256, 0), cost.Step(263, 256, 0), cost.Step(519, 88, 1)]
    assert benchmark.Test(300, 0, 0, "all").steps() == [cost.Step(0, 256, 256), cost.Step(256, 44, 44)]
    assert benchmark.Test(0, 2, 7).steps() == [cost.Step(7, 1, 1), cost.Step(8, 1, 1)]


# What is measured


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The JSON of a run over prompts, generations and depths, of a random model."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = ["--prompt", "9,300", "--gen", "20", "--depth", "0,30", "--repeat", "3", "--ops", "--json", "-t", "2"]
    done = llm(folder, "bench", "--shape", str(folder / "config.json"), "--quant", "int8", *words)
    assert "prompt of 300" in done.stderr
    return json.loads(answer(done))


def test_a_record_for_each_test(found: Any) -> None:
    assert found["schema"] == 1
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in found["records"]]
    assert tests == [(9, 0, 0), (9, 0, 30), (300, 0, 0), (300, 0, 30), (0, 20, 0), (0, 20, 30)]
    for record in found["records"]:
        assert set(LLAMA_BENCH) <= set(record)
        tokens = record["n_prompt"] or record["n_gen"]
        assert len(record["samples_ns"]) == 3 and min(record["samples_ns"]) > 0
        assert record["samples_ts"] == pytest.approx([tokens / ns * 1e9 for ns in record["samples_ns"]], rel=1e-3)
        assert record["median_ts"] == statistics.median(record["samples_ts"])
        assert record["model_n_params"] == 72 * 4096 + 2 * (240 * 72 + 72 * 144 + 3 * 172 * 72 + 2 * 72) + 72
        assert record["n_threads"] == found["machine"]["threads"] == 2
        assert record["type_k"] == "int16" and record["model_filename"] == ""
        assert record["bytes_per_second"] == pytest.approx(record["bytes_per_token"] * record["median_ts"])
        assert 0 < record["read_share"] < 2 and 0 < record["dot_share"] < 2
        assert record["peak_memory_bytes"] > record["model_size"]


def test_deeper_texts_read_more_and_prompts_less(found: Any) -> None:
    size = {(r["n_prompt"], r["n_gen"], r["n_depth"]): r["bytes_per_token"] for r in found["records"]}
    assert size[0, 20, 0] < size[0, 20, 30] < 1.5 * size[0, 20, 0]
    assert size[300, 0, 0] < size[9, 0, 0] / 4


def test_the_time_of_each_kind_of_operation(found: Any) -> None:
    for record in found["records"]:
        ops = record["ops"]
        assert sum(op["share"] for op in ops) == pytest.approx(1)
        assert [op["share"] for op in ops] == sorted((op["share"] for op in ops), reverse=True)
        assert min(op["seconds_per_token"] for op in ops) > 0
        assert {(op["kind"], op["part"]) for op in ops} >= {("linear", "down"), ("linear", "head"), ("attention", ""), ("norm", "")}
        calls = {op["part"] or op["kind"]: op["calls"] for op in ops}
        steps = -(-record["n_prompt"] // 256) or 1
        assert calls["down"] == calls["attention"] == 2 * steps and calls["head"] == steps


def test_the_machine_is_measured(found: Any) -> None:
    machine = found["machine"]
    assert machine["memory_bytes"] >= 4 * machine["cache_bytes"] and machine["model_bytes"] >= found["records"][0]["model_size"]
    assert 1e8 < machine["memory_read"] < 1e13 and 1e8 < machine["model_read"] < 1e13
    assert 1e9 < machine["f32_operations"] < 1e14 and 1e9 < machine["int8_operations"] < 1e15


def test_cpu_and_cache_from_the_systems_files(tmp_path: Path) -> None:
    for number, size in enumerate(("32K", "1024K", "3M", "odd")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size + "\n")
    assert measure.last_level_cache(tmp_path) == 3 << 20
    assert measure.last_level_cache(tmp_path / "missing") == 32 << 20
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU: fast\n")
    assert measure.cpu_name(tmp_path / "cpuinfo") == "A CPU: fast"
    assert measure.cpu_name(tmp_path / "missing")


def test_tables_for_people(tmp_path: Path) -> None:
    done = llm(tmp_path, "bench", "--prompt", "8", "--gen", "0", "--repeat", "1", "--logits", "all", "--ops")
    text = answer(done)
    assert text.startswith("model     demo:int8, ") and "prompt 8, all logits" in text
    assert "OPERATION" in text and "linear down" in text and "generate" not in text


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--prompt", "0", "--gen", "0"], 2, "nothing to measure"),
        (["--prompt", "512,x"], 2, "whole number"),
        (["--shape", "9Q"], 4, "135M"),
        (["--shape", "1B", "-m", "demo"], 2, "--shape"),
        (["--quant", "int4"], 2, "--shape"),
        (["--depth", "1000000", "--prompt", "8"], 8, "Measure fewer"),
    ],
)
def test_what_cannot_be_measured(words: list[str], code: int, hint: str, tmp_path: Path) -> None:
    assert hint in refused(llm(tmp_path, "bench", *words), code)


def test_a_context_that_the_shape_does_not_have() -> None:
    with pytest.raises(ContextOverflow):
        benchmark.random("x", SPECS["llama"], "int8", 601)
