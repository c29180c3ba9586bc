"""A model in parts on several devices computes what it computes whole, to the bit, also when a GPU's memory ends meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from arch_models import ARCHS, Model, opened
from llmcli import estimate
from llmcli.backends import backend
from llmcli.backends.backend import Batch, Result
from llmcli.backends.cpu import run as cpu
from llmcli.backends.cuda import lower
from llmcli.backends.cuda.buffers import Buffers
from llmcli.backends.cuda.kernels.attention_decode import units
from llmcli.errors import InternalError, OutOfMemory
from llmcli.kv import BLOCK, KVCache
from llmcli.models import decoder
from llmcli.offload import place, runner, steps
from llmcli.offload.place import Costs, Room, Share
from llmcli.offload.split import layer_starts, split
from test_archs import VARIANTS, golden


def parted(model: Model, *shares: Share, notes: list[str] | None = None) -> Model:
    """The same weights in parts, with a cache of its own."""
    cache = KVCache(model.cache.layers, model.cache.blocks + 2, model.cache.dtype)
    notify = (notes if notes is not None else []).append
    return replace(model, cache=cache, runner=runner.load(model.plan, model.weights, cache, shares, 1, notify))


def same(one: Result, other: Result) -> None:
    for name in ("logits", "top_ids", "top_logits", "logsumexp", "entropy"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.taps.keys() == other.taps.keys()
    for name, values in one.taps.items():
        np.testing.assert_array_equal(values, other.taps[name])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_architecture_in_parts(variant: str) -> None:
    """Cut behind each layer, with everything that taps show, in one step and in two."""
    ids = golden(variant)[0]
    with opened(ARCHS / variant, len(ids), taps=decoder.TAPS) as model:
        whole = model.cache.sequence()
        expected = model.runner.run(Batch.of(whole, ids, "all"))
        parts = parted(model, Share("reference", len(model.plan.cache)))
        for first in range(1, len(model.plan.cache)):
            parts = parted(model, Share("reference", first), Share("reference", len(model.plan.cache) - first))
            same(parts.runner.run(Batch.of(parts.cache.sequence(), ids, "all")), expected)
        steps = parts.cache.sequence()
        parts.runner.run(Batch.of(steps, ids[:-1], "none"))
        last = parts.runner.run(Batch.of(steps, ids[-1:]))
        np.testing.assert_array_equal(last.logits[0], expected.logits[-1])


def test_the_cpu_computes_parts() -> None:
    """The backend's own steps: pieces of a long text, and what is given to each of them."""
    ids = golden("gemma2")[0]
    with opened(ARCHS / "gemma2", len(ids), "int8", "cpu", taps=decoder.TAPS) as model:
        expected = model.runner.run(Batch.of(model.cache.sequence(), ids, "all"))
        parts = parted(model, Share("cpu", 1, 7), Share("cpu", 2, 5))
        same(parts.runner.run(Batch.of(parts.cache.sequence(), ids, "all")), expected)
        parts.runner.close()


def test_a_part_has_what_it_uses() -> None:
    with opened(ARCHS / "llama", 16) as model:
        first, last = split(model.plan, (1, len(model.plan.cache) - 1))
        assert {buffer.name for buffer in first.buffers} & {"logits", "wanted"} == set()
        assert "embedding" in first.weights and "final_norm" not in first.weights and "head" in last.weights
        assert [first.buffers[n].name for n in first.taps] == [last.buffers[n].name for n in last.given] == ["x"]
        assert split(model.plan, (0, len(model.plan.cache), 0)) == [model.plan]
        for counts in ((1,), (1, -1, len(model.plan.cache)), (len(model.plan.cache), 1)):
            with pytest.raises(InternalError):
                split(model.plan, counts)
        bare = replace(model.plan, ops=tuple(replace(op, label="") for op in model.plan.ops))
        with pytest.raises(InternalError, match="labels"):
            layer_starts(bare)


class Gpu:
    """The CPU backend with a memory of its own, of fixed size, which can run out."""

    def __init__(self, fails: Iterator[bool]) -> None:
        self.fails = fails
        self.loaded: list[weakref.ref[Stored]] = []

    supports = staticmethod(cpu.supports)

    def load(self, plan: Any, weights: Any, cache: KVCache, *rest: Any, device: int) -> Any:
        self.fail()
        assert not any(ref() for ref in self.loaded if device == 0), "what was there before still takes memory"
        own = KVCache(cache.layers, cache.blocks, cache.dtype)
        layers = tuple(sorted({op.params["layer"] for op in plan.ops if op.kind == "cache_write"}))
        found = Stored(self, cpu.load(plan, weights, own, *rest), own, layers)
        cache.keep_in(found)
        self.loaded.append(weakref.ref(found))
        return found

    def fail(self) -> None:
        if next(self.fails, False):
            raise OutOfMemory("GPU 0", "out of memory")


class Stored:
    """A runner and its layers' store."""

    def __init__(self, gpu: Gpu, inner: Any, own: KVCache, layers: tuple[int, ...]) -> None:
        self.gpu, self.inner, self.own, self.layers = gpu, inner, own, layers

    @property
    def store(self) -> Stored:
        return self

    def run(self, batch: Batch) -> Result:
        self.gpu.fail()
        return self.inner.run(batch)

    def close(self) -> None:
        self.inner.close()

    def copy(self, source: int, target: int) -> None:
        self.own._copy(source, target)

    def read(self, layer: int, block: int) -> npt.NDArray[np.uint8]:
        return self.own._heads(layer, block).reshape(-1).copy()

    def write(self, layer: int, block: int, data: npt.NDArray[np.uint8]) -> None:
        self.own._heads(layer, block).reshape(-1)[:] = data


def stub(monkeypatch: pytest.MonkeyPatch, fails: list[bool]) -> None:
    get = backend.get
    gpu = Gpu(iter(fails))
    monkeypatch.setattr(runner.backends, "get", lambda name: gpu if name == "cuda" else get(name))


def test_a_gpu_that_runs_out_of_memory_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps, with forks that share blocks: the cache moves, texts go on."""
    ids = np.tile(golden("gemma2")[0], 8)[:300]
    with opened(ARCHS / "gemma2", len(ids), "int8", "cpu") as model:
        whole = model.logits(ids)
        #        load   step   step  load   again  fork   last (then no GPU part is left)
        fails = [False, False, True, False, False, False, True]
        stub(monkeypatch, fails)
        notes: list[str] = []
        parts = parted(model, Share("cpu", 1), Share("cuda:0", 2), notes=notes)
        sequence = parts.cache.sequence()
        got = parts.runner.run(Batch.of(sequence, ids[: BLOCK + 20], "last")).logits.copy()
        np.testing.assert_array_equal(got[0], whole[BLOCK + 19])
        fork = sequence.fork()
        for text in (sequence, fork):  # the second one copies the block that both share
            got = parts.runner.run(Batch.of(text, ids[BLOCK + 20 : BLOCK + 30], "all")).logits.copy()
            np.testing.assert_array_equal(got, whole[BLOCK + 20 : BLOCK + 30])
        assert notes == ["GPU 0: out of memory; 1 instead of 2 of 3 layers are on the GPU now"]
        got = parts.runner.run(Batch.of(fork, ids[BLOCK + 30 :], "all")).logits.copy()
        np.testing.assert_array_equal(got, whole[BLOCK + 30 :])
        assert notes[1:] == ["GPU 0: out of memory; 0 instead of 1 of 3 layers are on the GPU now"]
        assert parts.runner.placement == (Share("cpu", 3),)
        np.testing.assert_array_equal(sequence.keys(2)[:, : BLOCK + 30], fork.keys(2)[:, : BLOCK + 30])
        parts.runner.close()


def test_a_model_without_memory_is_loaded_again_when_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's layers find no room on the CPU either: an error, behind which a chat goes on."""
    ids = golden("gemma2")[0]
    with opened(ARCHS / "gemma2", len(ids), "int8", "cpu") as model:
        stub(monkeypatch, [False, True])
        parts = parted(model, Share("cpu", 2), Share("cuda:0", 1))

        def full(*_: Any, **__: Any) -> None:
            raise OutOfMemory("no room", "a test")

        with monkeypatch.context() as patch:
            patch.setattr(cpu, "load", full)
            with pytest.raises(OutOfMemory, match="no room"):
                parts.logits(ids)
        np.testing.assert_array_equal(parts.logits(ids), model.logits(ids))
        parts.runner.close()


def test_memory_that_ends_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(ARCHS / "gemma2", 48, "int8", "cpu") as model:
        stub(monkeypatch, [False, True, True])
        notes: list[str] = []
        parts = parted(model, Share("cuda:0", 2), Share("cuda:1", 1), notes=notes)
        assert parts.runner.placement == (Share("cpu", 2), Share("cuda:1", 1)) and len(notes) == 2
        np.testing.assert_array_equal(parts.logits(golden("gemma2")[0]), model.logits(golden("gemma2")[0]))
        parts.runner.close()


def test_fewer_tokens_at_once_come_before_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(ARCHS / "gemma2", 48, "int8", "cpu") as model:
        stub(monkeypatch, [True, True, True])
        notes: list[str] = []
        parts = parted(model, Share("cuda:0", 3, 1024), notes=notes)
        assert parts.runner.placement == (Share("cpu", 1), Share("cuda:0", 2, 256))
        assert [note.partition("; ")[2] for note in notes] == [
            "it computes 512 tokens of a prompt at once now",
            "it computes 256 tokens of a prompt at once now",
            "2 instead of 3 of 3 layers are on the GPU now",
        ]
        np.testing.assert_array_equal(parts.logits(golden("gemma2")[0]), model.logits(golden("gemma2")[0]))
        parts.runner.close()


# Placement


def costs(layers: int = 0) -> tuple[Costs, int]:
    """Costs of a model with equal layers of some bytes (embedding and head left out), and those bytes."""
    with opened(ARCHS / "gpt_oss", 16) as model:
        stored = {name: 0 if "layers" not in name else 1 << 24 for name in model.plan.weights}
        found = Costs(model.plan, stored, 4, "f16")
        return found, found.weights(0, 1) + found.cache[0]


def test_as_many_layers_as_fit() -> None:
    found, layer = costs()
    own, count = found.part(0, 0), found.layers
    assert count >= 2
    assert place.choose(found, [Room(0, own + count * layer)], count) == (Share("cuda:0", count),)
    assert place.choose(found, [Room(0, own + count * layer - 1)], count) == (Share("cpu", 1), Share("cuda:0", count - 1))
    assert place.choose(found, [Room(0, own + count * layer)], 1) == (Share("cpu", count - 1), Share("cuda:0", 1))
    assert place.choose(found, [Room(0, own + layer - 1)], count) == place.choose(found, [], count) == (Share("cpu", count),)


def test_layers_come_before_tokens_at_once() -> None:
    """A long context's pieces are as large as the memory that layers leave; a short one's are no larger than it needs."""
    with opened(ARCHS / "gpt_oss", 16) as model:
        stored, plan = dict.fromkeys(model.plan.weights, 1 << 20), replace(model.plan, context=5000)
        assert list(Costs(model.plan, stored, 4, "f16").steps) == [256]
        assert list(Costs(replace(plan, context=600), stored, 4, "f16").steps) == [1024, 512, 256]
        found = Costs(plan, stored, 4, "f16")
        assert list(found.steps) == [2048, 1024, 512, 256]
        for tokens in found.steps:
            room = found.part(0, found.layers, tokens)
            assert place.choose(found, [Room(0, room)], 99) == (Share("cuda:0", found.layers, tokens),)
            less = place.choose(found, [Room(0, room - 1)], 99)[-1]
            expected = (found.layers, tokens // 2) if tokens > 256 else (found.layers - 1, 2048)
            assert (less.layers, less.tokens) == expected, "a layer that goes leaves room"
        chosen = [replace(op, params={**op.params, "chosen": 40}) if op.kind == "experts" else op for op in plan.ops]
        assert list(Costs(replace(plan, ops=tuple(chosen)), stored, 4, "f16").steps) == [1024, 512, 256], "a launch has 65,535 rows"


class Counted:
    """A GPU's memory, of which only sizes are there."""

    def __init__(self) -> None:
        self.bytes = 0

    def array(self, count: int, dtype: Any) -> Any:
        self.bytes += max(1, count) * np.dtype(dtype).itemsize

    def pinned(self, count: int, dtype: Any) -> Any:
        return np.broadcast_to(np.zeros(1, dtype), (count,))


@pytest.mark.parametrize("variant", ["llama", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("tokens", [256, 2048])
def test_a_steps_memory_is_what_is_estimated(variant: str, tokens: int) -> None:
    with opened(ARCHS / variant, 16) as model:
        plan, memory = replace(model.plan, context=3000), Counted()
        buffers = Buffers(plan, memory, tokens)  # type: ignore[arg-type]
        attention = [(op.integer("heads"), op.integer("head_size")) for op in plan.ops if op.kind == "attention"]
        most = units(plan.context)
        memory.array(max(lower.FEW * heads * most * size for heads, size in attention), np.float32)
        memory.array(max(lower.FEW * heads * most * 2 for heads, _ in attention), np.float32)
        assert buffers.tokens == tokens
        found, small = steps.step_bytes(plan, tokens), 1 << 18
        assert memory.bytes - small <= found <= 1.1 * memory.bytes + small


def test_what_parts_hand_on_is_counted() -> None:
    with opened(ARCHS / "llama", 16) as model:
        plan = model.plan
        assert place.handed(plan, (Share("cuda:0", 2, 2048),)) == 0
        assert place.handed(plan, (Share("cpu", 1), Share("cuda:0", 1, 1024))) == 8 * (1024 + 16) * plan.hidden
        few, many = (sum(estimate.Model(plan, 0, more=more).needed(0, "f16").values()) for more in (0, 77))
        assert many - few == 77


def test_several_gpus() -> None:
    found, layer = costs()
    own, count = found.part(0, 0), found.layers
    half, first = own + -(-count // 2) * layer, round(count / 2)
    rooms = [Room(0, half), Room(1, half)]
    assert place.choose(found, rooms, count) == (Share("cuda:0", first), Share("cuda:1", count - first))
    assert place.choose(found, [Room(0, 2 * half), Room(1, half)], count) == (Share("cuda:0", count),), "one is enough"
    assert place.choose(found, [Room(0, 1 << 40), Room(1, 1 << 40)], count, (1.0, 1.0))[0].layers == first
    twice = place.choose(found, [Room(0, 2 * half), Room(0, 2 * half)], count, (1.0, 1.0))
    assert twice == (Share("cuda:0", first), Share("cuda:0", count - first)), "one GPU as two parts"
    assert sum(share.layers for share in place.choose(found, [Room(0, half), Room(0, half)], count, (1.0, 1.0))[1:]) < count


@pytest.mark.parametrize("shares", [(1.0,), (3.0, 1.0), (1.0, 1.0, 1.0), (0.0, 5.0, 0.1)])
def test_shares_add_up(shares: tuple[float, ...]) -> None:
    for count in range(40):
        found = place.divide(count, shares)
        assert sum(found) == count
        assert all(abs(n - count * share / sum(shares)) <= 1 for n, share in zip(found, shares, strict=True))


def test_a_placement_is_explained() -> None:
    found, layer = costs()
    room = Room(0, found.part(0, 0) + layer)
    placement = place.choose(found, [room], found.layers)
    rows = place.explain(found, placement, [room], found.layers)
    assert [row.device for row in rows] == ["cpu"] * (found.layers - 1) + ["cuda:0"]
    assert "with the head" in rows[-1].why and "with the table of tokens" in rows[0].why
    assert f"this part takes {room.free / 2**20:,.0f} MiB of {room.free / 2**20:,.0f} MiB free" in rows[-1].why
    assert "would take" in rows[0].why
    asked = place.explain(found, place.choose(found, [Room(0, 1 << 40)], 1), [Room(0, 1 << 40)], 1)
    assert asked[0].why.startswith("-ngl 1;")
    assert {row.why.partition(";")[0] for row in place.explain(found, (Share("cpu", found.layers),), [], 0)} == {"no GPU is used"}
