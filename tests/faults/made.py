"""Homes with a random model for the cases, made once a module."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import random_model
from test_commands import answer, llm

CONFIG = {**random_model.CONFIG, "hidden_size": 144, "num_hidden_layers": 3, "intermediate_size": 400}
"""About 4 MB as float32: long enough for a fault to meet it at work."""


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home that has the model `tiny` unquantized, and its source in `source/tiny`."""
    folder = tmp_path_factory.mktemp("original")
    random_model.write_folder(folder / "source" / "tiny", CONFIG)
    answer(llm(folder / "home", "import", str(folder / "source" / "tiny"), "--quant", "none"))
    return folder


@pytest.fixture
def case(original: Path, tmp_path: Path) -> Path:
    """A copy of it for one case."""
    shutil.copytree(original, tmp_path / "case")
    return tmp_path / "case"


def models(folder: Path) -> Path:
    return folder / "home" / "data" / "models"


def hidden(folder: Path) -> list[str]:
    """What unfinished work left among the models."""
    return sorted(name for name in os.listdir(models(folder)) if name.startswith("."))
