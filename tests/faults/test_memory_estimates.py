"""Case 57: what a model is said to need, against what a process takes, for every family at several contexts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arch_models import ARCHS
from llmcli import engine as engines
from llmcli import library, places
from llmcli.errors import UnsupportedModel
from llmcli.models import architectures, decoder
from llmcli.models.names import Source, copy
from llmcli.plan import Plan, Weight
from llmcli.weights import packed, writer
from llmcli.weights.safetensors import Tensor
from test_archs import VARIANTS

CONTEXT = 4096
VOCABULARY = 5000
WIDER = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "n_embd",
    "n_head",
    "n_inner",
    "word_embed_proj_dim",
)
LONGER = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")

FILL = """
import sys
import numpy as np
from pathlib import Path
from llmcli import engine
from llmcli.backends.backend import Batch
with engine.opened(sys.argv[1], context=int(sys.argv[2])) as model:
    model.run(Batch.of(model.cache.sequence(), np.arange(model.context, dtype=np.int32) % model.plan.vocab))
    print(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
"""


def larger(config: dict[str, Any]) -> dict[str, Any]:
    """The tiny config with 12 times the heads and widths, and a usual vocabulary and context."""
    wider = {name: value * 12 if name in WIDER and type(value) is int else value for name, value in config.items()}
    return {name: CONTEXT if name in LONGER else value for name, value in wider.items()} | {"vocab_size": VOCABULARY}


class Constant:
    """A checkpoint with the weights of a plan, all 0.01: numbers do not matter here."""

    def __init__(self, plan: Plan) -> None:
        self.sources: dict[str, Source] = {}
        self.tensors: dict[str, Tensor] = {}
        for weight in plan.weights.values():
            names, shape = self._names(weight)
            self.sources[weight.name] = Source("stack", names) if weight.kind == "experts" else copy(names[0])
            self.tensors |= {name: Tensor(name, "F32", shape, 0, 4 * int(np.prod(shape))) for name in names}

    def _names(self, weight: Weight) -> tuple[tuple[str, ...], tuple[int, ...]]:
        if weight.kind != "experts":
            return (weight.name,), weight.shape
        return tuple(f"{weight.name}.{number}" for number in range(weight.shape[0])), weight.shape[1:]

    def read(self, name: str, start: int, size: int) -> np.ndarray:
        return np.full(size // 4, 0.01, np.float32).view(np.uint8)


SOME = sorted(VARIANTS)[::12]
"""Those of the suite; the others are behind -m long, because each has kernels of its own to compile."""


@pytest.fixture(scope="module", params=[v if v in SOME else pytest.param(v, marks=pytest.mark.long) for v in sorted(VARIANTS)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The packed file of a larger model of the family."""
    spec, _ = architectures.describe(larger(VARIANTS[request.param]))
    plan = decoder.plan(spec, CONTEXT)
    checkpoint = Constant(plan)
    with packed.open(next(places.demo().glob("*.safetensors"))) as demo:
        files = {name: demo.file(name) for name in ("tokenizer.json", "tokenizer_config.json")}
    path = tmp_path_factory.mktemp("memory") / f"{request.param}-int8.safetensors"
    texts = {"name": request.param, "source": "", "revision": "", "spec": spec.to_json()}
    writer.write_model(path, plan.weights, checkpoint.sources, checkpoint, "int8", texts, files)
    return str(path)


def within(model: str, context: int) -> None:
    context = min(context, library.describe(model, 8)["context"])
    try:
        engines.load(model, context=64).close()  # a process that compiles kernels needs more
    except UnsupportedModel as error:
        pytest.skip(f"the cpu backend: {error.why}")
    done = subprocess.run([sys.executable, "-c", FILL, model, str(context)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    estimate, peak = library.describe(model, context)["memory_bytes"], int(done.stdout) * 1024
    print(f"{Path(model).stem} at {context}: {estimate / 1e6:.1f} MB for {peak / 1e6:.1f}")
    assert peak <= estimate <= max(1.1 * peak, peak + 20e6)


def test_every_family_is_measured() -> None:
    assert {path.name for path in ARCHS.iterdir() if path.is_dir()} <= set(VARIANTS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is known on Linux only")
def test_the_estimate_is_the_peak(model: str) -> None:
    within(model, 1024)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is known on Linux only")
def test_the_estimate_is_the_peak_at_other_contexts(model: str) -> None:
    for context in (128, CONTEXT):
        within(model, context)
