"""Pulled models and the commands that manage models: what a killed pull leaves goes, what was kept is used."""

from __future__ import annotations

from pathlib import Path

import random_model
from fakehub import FakeHub, Fault, fakehub
from llmcli.weights import packed
from pulling import REPOSITORY, Puller, imported, pull, sharded, tensors_of

__all__ = ["fakehub", "pull"]


def test_clean_removes_what_a_failed_pull_left(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, sharded(tmp_path / "three", 3))
    fakehub.fault = Fault("truncate", amount=60_000)
    assert pull(REPOSITORY) == 5, pull.err
    assert any(name.endswith(".part") for name in pull.leftovers()), pull.leftovers()
    assert pull("--dry-run", command="clean") == 0 and "unfinished" in pull.out
    assert pull(command="clean", LLMCLI_KERNELS=str(tmp_path / "kernels")) == 0, pull.err
    assert pull.leftovers() == []
    fakehub.fault = Fault("none")
    assert pull(REPOSITORY) == 0, pull.err


def test_quantize_uses_a_download_that_was_kept(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    source = random_model.write_folder(tmp_path / "single")
    commit = fakehub.add(REPOSITORY, source)
    assert pull(REPOSITORY, "--keep-source") == 0, pull.err
    assert pull(command="clean", LLMCLI_KERNELS=str(tmp_path / "kernels")) == 0 and "nothing to remove" in pull.err
    asked = len(fakehub.requests)
    assert pull(REPOSITORY, "--quant", "int4", command="quantize") == 0, pull.err
    assert f"from {pull.home / 'cache' / 'downloads' / 'org--model' / commit}" in pull.err and len(fakehub.requests) == asked
    path = pull.path("org--model-int4")
    assert tensors_of(path) == imported(source, tmp_path, "int4")
    with packed.open(path) as file:
        assert (file.source, file.revision) == (REPOSITORY, commit)
    assert pull(REPOSITORY, "--quant", "int4") == 0 and len(fakehub.requests) == asked, "it counts as pulled"
