"""What the tests of `llm pull` share: model folders for the fake hub, and ways to run the command against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.numpy

import random_model
from fakehub import FakeHub
from llmcli import acquire
from llmcli.cli.app import main
from llmcli.weights import packed
from terminal import environment

REPOSITORY = "org/model"


def config(hidden: int = 256, layers: int = 4, inner: int = 1024) -> dict[str, Any]:
    """About 20 MB of float32 as it stands."""
    heads = {"num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 64, "head_dim": 32}
    return {**random_model.CONFIG, **heads, "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}


def sharded(folder: Path, shards: int, config: Mapping[str, Any] = random_model.CONFIG) -> Path:
    """A model folder whose weights lie in several files, dealt out one tensor at a time: most weights lie in two shards."""
    tensors = random_model.tensors(dict(config))
    random_model.write_folder(folder, dict(config), tensors)
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        own = {name: tensors[name] for name in names[len(names) * i // shards : len(names) * (i + 1) // shards]}
        safetensors.numpy.save_file(own, folder / file)
        weight_map.update(dict.fromkeys(own, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def weights_size(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def variables(hub: FakeHub, home: Path, **extra: str) -> dict[str, str]:
    """An environment with this hub, and a home and a hub's cache of its own."""
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "LLMCLI_HOME": str(home),
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
        "no_proxy": "127.0.0.1",
    }
    inherited = environment({**own, "PYTHONPATH": os.pathsep.join(sys.path), **extra})
    return {name: value for name, value in inherited.items() if name in {**own, **extra} or not name.startswith(("HF_", "LLMCLI_OFFLINE"))}


def start(hub: FakeHub, home: Path, *words: str, command: str = "pull", **extra: str) -> subprocess.Popen[str]:
    """`llm pull`, or another command, as a process."""
    program = [sys.executable, "-m", "llmcli", command, *words]
    return subprocess.Popen(program, env=variables(hub, home, **extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Puller:
    """`llm pull` in this process, with a home of its own."""

    def __init__(self, hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.hub, self.home, self._capsys = hub, home, capsys
        self.err = ""

    def __call__(self, *words: str, command: str = "pull", **extra: str) -> int:
        self._capsys.readouterr()
        with mock.patch.dict(os.environ, variables(self.hub, self.home, **extra), clear=True):
            code = main([command, *words])
        self.out, self.err = self._capsys.readouterr()
        assert ("Traceback" in self.err) <= ("--debug" in words)
        return code

    def error(self, code: int, *words: str, **extra: str) -> str:
        """The error line of a pull that ends with this code."""
        assert self(*words, **extra) == code, self.err
        assert self.out == ""
        line = self.err.splitlines()[-1]
        assert line.startswith("llm: error: ")
        return line

    def path(self, name: str = "org--model-int8") -> Path:
        return self.home / "data" / "models" / f"{name}.safetensors"

    def leftovers(self) -> list[str]:
        """Files under the home that are no models."""
        return sorted(str(p.relative_to(self.home)) for p in self.home.rglob("*") if p.is_file() and (p.suffix != ".safetensors"))


@pytest.fixture
def pull(fakehub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Puller:
    return Puller(fakehub, tmp_path / "home", capsys)


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Format, shape and SHA-256 of everything in a packed file, whose bytes are compared with them."""
    with packed.open(path) as file:
        file.verify()
        return {name: (entry.format, entry.shape, entry.sha256) for name, entry in file.entries.items()}


def imported(folder: Path, directory: Path, quant: str = "int8") -> dict[str, tuple[str, tuple[int, ...], str]]:
    """What `llm import` makes of the folder."""
    return tensors_of(acquire.import_model(folder, quant, "imported", path=directory / f"imported-{quant}.safetensors"))
