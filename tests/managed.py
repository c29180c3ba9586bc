"""A home with the random model `tiny`, for tests of the commands that manage models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import random_model
from test_commands import answer, llm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the random model `tiny` as it comes and in int8, and the folder it was made of."""
    home = tmp_path_factory.mktemp("made")
    source = random_model.write_folder(home / "source" / "tiny")
    for quant in ("none", "int8"):
        answer(llm(home, "import", str(source), "--quant", quant))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, without the source's folder."""
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.delenv("LLMCLI_MODEL", raising=False)
    monkeypatch.setenv("LLMCLI_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def lost(made: Path, home: Path) -> Iterator[Path]:
    """The same, but the source is not there any more."""
    os.rename(made / "source", made / "away")
    yield home
    os.rename(made / "away", made / "source")


def model_file(home: Path, quant: str) -> Path:
    return home / "data" / "models" / f"tiny-{quant}.safetensors"


def damage(path: Path, at: int = -5000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
