"""A model of every kind of weight, small enough to be written hundreds of times, and its fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from llmcli.models.names import Source, copy
from llmcli.plan import Weight
from llmcli.weights import packed, writer
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File

RNG = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "embed": RNG.standard_normal((37, 40)).astype(np.float32),
    "up": RNG.standard_normal((70, 40)).astype(np.float16),
    "down": RNG.standard_normal((40, 70)).astype(np.float16),
    "norm": RNG.standard_normal(40).astype(np.float32),
    "gate": RNG.standard_normal((2, 40)).astype(np.float16),
    "e0": RNG.standard_normal((5, 40)).astype(np.float32),
    "e1": RNG.standard_normal((5, 40)).astype(np.float32),
    "rows": RNG.standard_normal((9, 40)).astype(np.float32),
}
WEIGHTS = {
    "embedding": Weight("embedding", (37, 40), "embedding"),
    "position": Weight("position", (9, 40), "table"),
    "layers.0.norm": Weight("layers.0.norm", (40,), "vector"),
    "layers.0.up": Weight("layers.0.up", (70, 40), "matrix"),
    "layers.0.down": Weight("layers.0.down", (40, 70), "matrix"),
    "layers.0.router": Weight("layers.0.router", (2, 40), "router"),
    "layers.0.experts_up": Weight("layers.0.experts_up", (2, 5, 40), "experts"),
}
SOURCES = {
    **{"embedding": copy("embed"), "position": copy("rows"), "layers.0.norm": copy("norm"), "layers.0.up": copy("up")},
    **{"layers.0.down": copy("down"), "layers.0.router": copy("gate"), "layers.0.experts_up": Source("stack", ("e0", "e1"))},
}
TEXTS = {"name": "small", "source": "a test", "revision": "", "spec": '{"any": "text"}', "created": "2000-01-01"}
FILES = {"tokenizer.json": b'{"x": 1}', "empty.txt": b"", "LICENSE": bytes(range(64))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    with File(path) as file:
        yield Checkpoint([file])


@pytest.fixture
def path(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    write(tmp_path / "small-int4.safetensors", checkpoint)
    return tmp_path / "small-int4.safetensors"


def write(path: Path, checkpoint: Checkpoint, quantization: str = "int4", **more: Any) -> None:
    writer.write_model(path, WEIGHTS, SOURCES, checkpoint, quantization, TEXTS, FILES, **more)


def load(path: Path) -> None:
    """Reads everything and compares checksums."""
    with packed.open(path) as model:
        for name in model.files:
            model.file(name)
        model.load()
