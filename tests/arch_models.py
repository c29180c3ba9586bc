"""Opens a model folder for the tests of numbers: our own conversion, without a packed file in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcli.backends import backend
from llmcli.backends.backend import Batch, Runner
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.kv import BLOCK, KVCache
from llmcli.models import architectures, config, decoder, names
from llmcli.models.spec import Spec
from llmcli.plan import Plan
from llmcli.weights import convert
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File

ARCHS = Path(__file__).parent / "fixtures" / "archs"


@dataclass
class Model:
    """A converted model and what runs it."""

    spec: Spec
    plan: Plan
    weights: dict[str, PackedTensor]
    cache: KVCache
    runner: Runner

    def logits(self, ids: npt.NDArray[np.int32], steps: int = 1) -> npt.NDArray[np.float32]:
        """[T, V] logits of a text read from its beginning, in `steps` steps."""
        sequence = self.cache.sequence()
        parts = [self.runner.run(Batch.of(sequence, part, "all")).logits.copy() for part in np.array_split(ids, steps)]
        sequence.close()
        return np.concatenate(parts)


@contextmanager
def opened(
    folder: Path,
    context: int,
    quantization: str = "none",
    name: str = "reference",
    kv: str = "f32",
    change: Callable[[Spec], Spec] = lambda spec: spec,
    taps: Collection[str] = (),
) -> Iterator[Model]:
    """The model in `folder` on the backend `name`. change: what to make of its spec; it must leave the weights alone. taps: of its plan.
    Raises UnsupportedModel where the backend lacks an operation."""
    spec, architecture = architectures.describe(config.parse((folder / "config.json").read_bytes()))
    spec = change(spec)
    plan = decoder.plan(spec, context, taps)
    checkpoint = Checkpoint([File(path) for path in sorted(folder.glob("*.safetensors"))])
    try:
        sources = names.sources(spec, plan, architecture, checkpoint.tensors)
        convert.check(plan.weights, sources, checkpoint.tensors, names.ignored(spec, architecture))
        weights = {}
        for weight in plan.weights.values():
            source = sources[weight.name]
            matrices = [matrix.read(0, matrix.rows) for matrix in convert.matrices(weight, source, checkpoint)]
            if weight.kind in ("vector", "table"):
                weights[weight.name] = PackedTensor("vector", weight.shape, np.concatenate(matrices).ravel().view(np.uint8))
                continue
            stored = convert.float_format(source, checkpoint.tensors)
            format = "f32" if weight.kind == "router" else stored if quantization == "none" else quantization
            data = np.concatenate([formats.get(format).pack(matrix) for matrix in matrices])
            weights[weight.name] = PackedTensor(format, weight.shape, _aligned(data))
    finally:
        checkpoint.close()
    module = backend.get(name)
    backend.check(module, plan, weights)
    cache = KVCache(plan.cache, 1 + context // BLOCK, kv)
    runner = module.load(plan, weights, cache, 1, context)
    try:
        yield Model(spec, plan, weights, cache, runner)
    finally:
        runner.close()


def _aligned(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    out = formats.aligned(len(data))
    out[:] = data
    return out
