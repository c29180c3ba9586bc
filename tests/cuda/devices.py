"""Models on the cuda backend, simulated or real: what both kinds of tests compute and compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends import backend
from llmcli.backends.backend import Batch, Result
from llmcli.backends.cuda.buffers import Buffers
from llmcli.backends.cuda.lower import QUANTIZERS, Lowering
from llmcli.backends.cuda.store import DeviceStore
from llmcli.backends.fuse import fuse
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor, integers
from llmcli.kv import KVCache
from llmcli.models import decoder
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Norm, Rope, Spec
from llmcli.offload import runner
from llmcli.offload.place import Share
from llmcli.plan import Plan, Weight

Ints, Floats = npt.NDArray[np.int32], npt.NDArray[np.float32]
HIDDEN, VOCAB, CONTEXT = 30, 37, 12


def spec(*layers: Layer, **fields: object) -> Spec:
    return replace(Spec(VOCAB, HIDDEN, CONTEXT, Norm(), layers), **fields)  # type: ignore[arg-type]


_GROUPED = Attention(4, 2, 8, 8**-0.5, bias=True, qk_norm="head")
_CAPPED = Attention(3, 1, 10, 0.3, softcap=3.0)
_SLOPES = Attention(2, 2, 9, 9**-0.5, bias=True, out_bias=True, alibi=(0.5, 0.125), clip=1.5)
_SINKS = Attention(4, 1, 8, 8**-0.5, bias=True, out_bias=True, sinks=True, qk_norm="each")
_CHOSEN = Experts(4, 2, 14, softmax="after", bias=True, router_bias=True, limit=2.0, shift=1.0)
_SHARED = Experts(3, 2, 20, scale=1.5, shared=24, shared_gate=True)
SPECS = {
    "grouped": spec(Layer(_GROUPED, Mlp(28), rope=Rope(8)), Layer(_GROUPED, Mlp(28), rope=Rope(6, interleaved=True, factor=1.0))),
    "capped": spec(
        Layer(replace(_CAPPED, window=2), Mlp(28, "gelu_tanh"), rope=Rope(10), post_norms=True),
        Layer(_CAPPED, Mlp(28, "gelu"), rope=Rope(10), post_norms=True, pre_norms=False),
        embedding_scale=6.0,
        logit_softcap=5.0,
    ),
    "slopes": spec(
        Layer(_SLOPES, Mlp(28, "gelu", False, True), residual="parallel", shared_norm=True),
        Layer(_SLOPES, Mlp(28, "relu2", False), residual="parallel"),
        norm=Norm("layer", bias=True),
        positions=CONTEXT + 2,
        position_offset=2,
        embedding_norm=True,
        tied=False,
        head_bias=True,
    ),
    "experts": spec(
        Layer(_SINKS, experts=_CHOSEN, rope=Rope(8)),
        Layer(_SINKS, experts=_SHARED, rope=Rope(8)),
        residual_scale=0.5,
        logit_scale=0.25,
    ),
}
"""Between them every operation and every variant of it. docs/models.md's families are made of these."""

_SMALL = Layer(Attention(2, 1, 4, 0.5, qk_norm="head"), Mlp(10), rope=Rope(4))
SMALL = replace(spec(_SMALL, _SMALL), vocab=9, hidden=12)
"""What the simulator computes soonest."""


@dataclass
class Model:
    plan: Plan
    weights: dict[str, PackedTensor]
    cache: KVCache
    runner: backend.Runner


def made(spec: Spec, quantization: str, kv: str, taps: tuple[str, ...] = ()) -> Model:
    """A model with random weights on the reference backend."""
    rng = np.random.default_rng(7)
    plan = decoder.plan(spec, spec.context, taps)
    weights = {name: _random(weight, quantization, rng) for name, weight in plan.weights.items()}
    cache = KVCache(plan.cache, 2, kv)
    return Model(plan, weights, cache, backend.get("reference").load(plan, weights, cache))


def _random(weight: Weight, quantization: str, rng: np.random.Generator) -> PackedTensor:
    values = rng.standard_normal(weight.shape).astype(np.float32)
    if weight.kind in ("vector", "table"):
        values = values * np.float32(0.1) + np.float32(weight.kind == "vector" and not weight.name.endswith("_bias"))
        return PackedTensor("vector", weight.shape, _aligned(values.reshape(-1).view(np.uint8)))
    kept = {"router": "f32", "embedding": "f16" if quantization == "f16" else "int8"}
    format = kept.get(weight.kind, "int8" if weight.kind == "head" and quantization != "f16" else quantization)
    values *= np.float32(weight.shape[-1] ** -0.5)
    matrices = values.reshape(-1, *weight.shape[-2:])
    return PackedTensor(format, weight.shape, _aligned(np.concatenate([formats.get(format).pack(matrix) for matrix in matrices])))


def _aligned(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    out = formats.aligned(len(data))
    out[:] = data
    return out


class Memory:
    """Arrays of this machine in the place of a GPU's."""

    def array(self, count: int, dtype: Any) -> Any:
        return np.zeros(max(1, count), dtype)

    pinned = array

    def constant(self, values: Any) -> Any:
        return values

    def upload(self, pieces: Any, count: int, dtype: Any) -> Any:
        return np.concatenate(list(pieces)).view(dtype)


def lowered(model: Model, tokens: int, together: bool = True) -> Lowering:
    """The model as launches on this machine's memory, which nobody can start. together: as it is on a GPU, where kernels take neighbours
    together."""
    memory: Any = Memory()
    buffers = Buffers(model.plan, memory, tokens)
    buffers.grow(tokens)
    store = DeviceStore(memory, model.cache, tuple(range(len(model.plan.cache))))
    ops = fuse(model.plan, lambda weight: integers(model.weights[weight].format), together, QUANTIZERS if together else ())
    return Lowering(model.plan, ops, model.weights, store, buffers, memory)


@contextmanager
def placed(model: Model, *shares: Share) -> Iterator[Model]:
    """The same weights with layers on these devices, and a cache of their own."""
    cache = KVCache(model.cache.layers, model.cache.blocks + 1, model.cache.dtype)
    there = runner.load(model.plan, model.weights, cache, shares, 1)
    try:
        yield Model(model.plan, model.weights, cache, there)
    finally:
        there.close()


def read(model: Model, ids: Ints) -> Result:
    """A text's logits, from its beginning, in one step."""
    return model.runner.run(Batch.of(model.cache.sequence(), ids, "all"))


def apart(found: Floats, expected: Floats) -> float:
    """How far log-probabilities are apart at most."""
    wide = [x.astype(np.float64) - x.max(-1, keepdims=True) for x in (found, expected)]
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in wide)
    return float(np.abs(a - b).max())
