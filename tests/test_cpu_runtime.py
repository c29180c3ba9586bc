"""The CPU backend around its kernels: fusing, lowering, the runner. Kernels have their own tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from llmcli.backends import backend, fuse
from llmcli.backends.backend import Batch
from llmcli.backends.cpu import objects, run
from llmcli.errors import CorruptFile, NumericalError, Stopped
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor, aligned
from llmcli.kv import KVCache
from llmcli.models import decoder
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Rope, Spec
from llmcli.plan import Op, Plan, Slot
from llmcli.weights.checksum import checksum

VOCAB = 403
Floats = npt.NDArray[np.float32]
Weights = dict[str, PackedTensor]


def small_plan(context: int = 1024) -> Plan:
    """A Llama of two layers, with sizes that divide by nothing."""
    attention = Attention(heads=4, kv_heads=2, head_size=20, scale=20**-0.5, bias=True)
    layers = (Layer(attention, Mlp(90), rope=Rope(20)),) * 2
    return decoder.plan(Spec(vocab=VOCAB, hidden=72, context=context, norm=Norm(), layers=layers), context)


def vector(values: Floats) -> PackedTensor:
    data = aligned(-(-values.nbytes // 64) * 64)
    data[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return PackedTensor("vector", values.shape, data)


def packed(format: str, values: Floats) -> PackedTensor:
    bytes_ = formats.get(format).pack(values)
    data = aligned(len(bytes_))
    data[:] = bytes_
    return PackedTensor(format, values.shape, data)


def random_weights(plan: Plan, format: str) -> Weights:
    rng = np.random.default_rng(5)
    made = {}
    for name, weight in plan.weights.items():
        values = rng.standard_normal(weight.shape, np.float32) / np.float32(np.sqrt(weight.shape[-1]))
        plain = weight.kind in ("vector", "table")
        own = "int8" if formats.get(format).FORMAT.offset and weight.kind == "embedding" else format
        made[name] = vector(values + np.float32("norm" in name)) if plain else packed(own, values)
    return made


def tokens_of(count: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(6).integers(0, VOCAB, count).astype(np.int32)


def logits_of(runner: backend.Runner, cache: KVCache, plan: Plan, tokens: npt.NDArray[np.int32], sizes: Sequence[int]) -> Floats:
    """All logits of a text that is computed in steps of these sizes."""
    sequence = cache.sequence()
    found, at = [], 0
    for size in sizes:
        batch = Batch.of(sequence, tokens[at : at + size], "all")
        batch.check(plan)
        found.append(runner.run(batch).logits.copy())
        at += size
    sequence.close()
    return np.concatenate(found)


# The runner


@pytest.mark.parametrize(
    ("format", "kv", "bound"),
    [("f32", "f32", 2e-6), ("bf16", "f16", 1e-3), ("int8", "f32", 2e-2), ("int4", "int16", 2e-2), ("int8", "int8", 3e-2)]
    + [("int4_offset", "f16", 2e-2)],
)
def test_it_agrees_with_the_reference(format: str, kv: str, bound: float) -> None:
    """Quantized activations that lie between two steps may fall to either side, so those bounds are wider."""
    plan = small_plan()
    weights, tokens = random_weights(plan, format), tokens_of(70)
    results = {}
    for name in ("reference", "cpu"):
        cache = KVCache(plan.cache, 1, kv)
        module = backend.get(name)
        backend.check(module, plan, weights)
        runner = module.load(plan, weights, cache, 2, 32)
        result = runner.run(Batch.of(cache.sequence(), tokens, "all"))
        results[name] = {key: value.astype(np.float64) for key, value in vars(result).items() if key != "taps"}
        runner.close()
    want, got = results["reference"], results["cpu"]
    for key in ("logits", "top_logits", "logsumexp", "entropy"):
        assert np.linalg.norm(got[key] - want[key]) <= bound * np.linalg.norm(want[key]), key
    picked = np.take_along_axis(got["logits"], got["top_ids"].astype(np.int64), -1)
    assert (picked == got["top_logits"]).all()


@pytest.mark.parametrize(("format", "kv"), [("f32", "f32"), ("int8", "f16"), ("int8", "int16")])
def test_bits_do_not_depend_on_steps_or_threads(format: str, kv: str) -> None:
    plan = small_plan()
    weights, tokens, count = random_weights(plan, format), tokens_of(513), 513
    want: npt.NDArray[np.int32] | None = None
    for number in (1, 2, 3):
        cache = KVCache(plan.cache, 3, kv)
        runner = run.load(plan, weights, cache, number, most_tokens=200)
        ways = [[1] * count, [2] * 256 + [1], [7] * 73 + [2], [8] * 64 + [1], [512, 1], [1, 512]]
        for sizes in ways if number == 2 else ways[-2:]:
            got = logits_of(runner, cache, plan, tokens, sizes).view(np.int32)
            want = got if want is None else want
            assert (got == want).all(), f"{number} threads, steps of {sizes[0]}"
        runner.close()


def test_sequences_of_a_batch_do_not_meet() -> None:
    plan = small_plan()
    cache = KVCache(plan.cache, 4, "f16")
    runner = run.load(plan, random_weights(plan, "int8"), cache, 2, most_tokens=16)
    texts = [tokens_of(40)[start:] for start in (0, 11, 23)]
    alone = [logits_of(runner, cache, plan, text, [len(text)])[-1] for text in texts]
    sequences = [cache.sequence() for _ in texts]
    for sequence, text in zip(sequences, texts, strict=True):
        sequence.extend(len(text))
    owners = np.concatenate([np.full(len(text), i, np.int32) for i, text in enumerate(texts)])
    positions = np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])
    last = np.cumsum([len(text) for text in texts]).astype(np.int32) - 1
    batch = Batch(np.concatenate(texts), positions, tuple(sequences), owners, last)
    batch.check(plan)
    assert (runner.run(batch).logits == np.stack(alone)).all()
    runner.close()


def test_a_step_without_outputs_fills_the_cache() -> None:
    plan = small_plan()
    cache = KVCache(plan.cache, 2, "f32")
    runner = run.load(plan, random_weights(plan, "f32"), cache, 1)
    sequence, tokens = cache.sequence(), tokens_of(9)
    assert runner.run(Batch.of(sequence, tokens[:8], "none")).logits.shape == (0, VOCAB)
    last = runner.run(Batch.of(sequence, tokens[8:])).logits.copy()
    assert (last == logits_of(runner, cache, plan, tokens, [9])[-1:]).all()
    runner.close()


@pytest.mark.parametrize(
    ("name", "kv", "label", "hint"),
    [
        ("layers.1.mlp_norm", "f32", "final_norm", "damaged"),
        ("layers.1.attention_out", "f32", "layers.1.mlp_norm", "damaged"),
        ("layers.0.qkv", "f32", "layers.0.cache_write", "damaged"),
        ("layers.0.qkv", "f16", "layers.0.cache_write", "--kv f32"),
        ("layers.0.qkv", "int16", "layers.0.cache_write", "--kv f32"),
    ],
)
def test_not_a_number_stops_the_step(name: str, kv: str, label: str, hint: str) -> None:
    plan = small_plan()
    weights = random_weights(plan, "f32")
    weights[name].data.view(np.float32)[:] = np.nan
    cache = KVCache(plan.cache, 1, kv)
    runner = run.load(plan, weights, cache, 2)
    with pytest.raises(NumericalError, match=rf"at {label}, token 0 of the step.*{hint}"):
        runner.run(Batch.of(cache.sequence(), tokens_of(1), "last"))
    runner.close()


def test_a_fault_names_the_token_of_a_long_step() -> None:
    plan = small_plan()
    weights = random_weights(plan, "f32")
    tokens = np.zeros(50, np.int32)
    tokens[37] = 5
    weights["embedding"] = packed("f32", np.where(np.arange(VOCAB)[:, None] == 5, np.nan, 0.1).astype(np.float32) * np.ones(72, np.float32))
    cache = KVCache(plan.cache, 1, "f32")
    runner = run.load(plan, weights, cache, 2, most_tokens=16)
    with pytest.raises(NumericalError, match="at layers.0.attention_norm, token 37 of the step"):
        runner.run(Batch.of(cache.sequence(), tokens, "none"))
    runner.close()


def test_a_weight_of_the_wrong_size_is_refused() -> None:
    plan = small_plan()
    weights = random_weights(plan, "int8")
    good = weights["layers.0.down"]
    weights["layers.0.down"] = PackedTensor("int8", good.shape, good.data[:-64])
    with pytest.raises(CorruptFile, match=r"weight layers\.0\.down"):
        run.load(plan, weights, KVCache(plan.cache, 1, "f16"), 1)


def test_each_operation_can_be_timed() -> None:
    """Together they take what the step takes; on a busy machine, in the best of some attempts."""
    plan = small_plan()
    cache = KVCache(plan.cache, 1, "f16")
    runner = run.load(plan, random_weights(plan, "int8"), cache, 2)
    sequence, covered = cache.sequence(), []
    for _ in range(20):
        sequence.truncate(0)
        batch = Batch.of(sequence, tokens_of(250), "all")
        start = time.perf_counter()
        times = runner.times(batch)
        covered.append(sum(seconds for _, seconds in times) / (time.perf_counter() - start))
        assert [op.label for op, _ in times if op.kind == "linear"][-2:] == ["layers.1.down", "head"]
        assert all(seconds > 0 for _, seconds in times)
    assert max(covered) > 0.6 and max(covered) <= 1
    runner.close()


def test_a_stopped_runner_says_so_and_goes_on() -> None:
    plan = small_plan()
    cache = KVCache(plan.cache, 4, "f16")
    runner = run.load(plan, random_weights(plan, "int8"), cache, 2)
    tokens = tokens_of(1000)
    want = logits_of(runner, cache, plan, tokens[:3], [3])
    timer = threading.Timer(0.05, runner.stop)
    timer.start()
    sequence = cache.sequence()
    with pytest.raises(Stopped):
        while True:
            sequence.truncate(0)
            runner.run(Batch.of(sequence, tokens, "all"))
    sequence.close()
    assert (logits_of(runner, cache, plan, tokens[:3], [3]) == want).all()
    runner.close()


def test_the_checksum_is_that_of_the_packed_file() -> None:
    data = aligned(3 * run.CHECKSUM_PIECE + 640)
    data[:] = np.random.default_rng(0).integers(0, 256, len(data), np.uint8)
    assert objects.ready(("no.kernel", ())) is None  # nothing is compiled for it
    objects.load([run.CHECKSUM_KERNEL])
    fast = run.checksum()
    assert fast is not None
    for size, first in ((len(data), 0), (64, 8), (0, 3), (run.CHECKSUM_PIECE, 1 << 40)):
        assert fast(data.ctypes.data, size, first) == checksum(data[:size], first)


# Fusing


def kinds(plan: Plan, *, integers: bool) -> list[str]:
    return [op.kind for _, op in fuse.fuse(plan, lambda name: integers)]


def test_neighbours_become_one() -> None:
    plan = small_plan()
    layer = "norm quantize linear rope cache_write attention quantize linear norm quantize linear activation quantize linear".split()
    assert kinds(plan, integers=True) == ["embed", *layer, *layer, "select_rows", "norm", "quantize", "linear", "top"]
    assert kinds(plan, integers=False) == [kind for kind in kinds(plan, integers=True) if kind != "quantize"]
    added = [op.label for _, op in fuse.fuse(plan, lambda name: True) if op.params.get("add")]
    assert added == [f"layers.{i}.{name}" for i in (0, 1) for name in ("attention_out", "down")]


def test_keys_are_turned_where_they_are_written() -> None:
    """Unless there is something in between, such as a copy of the queries, or a backend does not have it."""
    plan = small_plan()
    ops = [(number, op) for number, op in fuse.fuse(plan, lambda name: True, turns=True) if op.kind in ("rope", "cache_write")]
    for number, op in ops:
        rope, write = plan.ops[number - 1 : number + 1]
        assert (rope.kind, write.kind) == ("rope", "cache_write") and op.label == write.label
        assert op.out == rope.out and op.inputs == write.inputs and op.params == {**rope.params, **write.params}
    assert len(ops) == 2
    attention = Attention(heads=4, kv_heads=2, head_size=20, scale=20**-0.5)
    layers = (Layer(attention, Mlp(90), rope=Rope(20)), Layer(attention, Mlp(90)))
    spec = Spec(vocab=VOCAB, hidden=72, context=64, norm=Norm(), layers=layers)
    for taps, count in ((), 1), (("attention",), 0):
        fused = fuse.fuse(decoder.plan(spec, 64, taps), lambda name: True, turns=True)
        writes = [op for _, op in fused if op.kind == "cache_write"]
        assert len(writes) == 2 and sum("frequencies" in op.params for op in writes) == count
        assert sum(op.kind == "rope" for _, op in fused) == 1 - count


def test_what_is_needed_again_is_kept() -> None:
    plan = small_plan()
    branch = next(op.out[0] for op in plan.ops if op.label == "layers.1.down")
    at = next(i for i, op in enumerate(plan.ops) if op.label == "layers.1.mlp_add")
    x = plan.ops[at].out[0]
    again = Op("add", (x,), (x, branch), label="again")
    other = Plan((*plan.ops[: at + 1], again, *plan.ops[at + 1 :]), plan.buffers, plan.weights, plan.cache, VOCAB, 72, 1024, plan.logits)
    assert [op.label for _, op in fuse.fuse(other, lambda name: False) if op.kind == "add"] == ["layers.1.mlp_add", "again"]


def test_one_quantization_serves_all_products_of_an_input() -> None:
    plan = small_plan()
    at = next(i for i, op in enumerate(plan.ops) if op.label == "layers.0.gate_up")
    up = plan.ops[at]
    half = [Op("linear", (Slot(up.out[0].buffer, start, 90),), up.inputs, up.weights, label=f"half {start}") for start in (0, 90)]
    other = Plan((*plan.ops[:at], *half, *plan.ops[at + 1 :]), plan.buffers, plan.weights, plan.cache, VOCAB, 72, 1024, plan.logits)
    assert kinds(other, integers=True).count("quantize") == kinds(plan, integers=True).count("quantize")
