"""`llm clean` and `llm rm`: what goes, and above all what stays."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from llmcli import places
from llmcli.backends.cpu import objects
from managed import home, made, model_file
from test_commands import answer, llm, refused

__all__ = ["home", "made"]  # fixtures


@pytest.fixture(autouse=True)
def _own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaning must not touch the kernels that tests share."""
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "cache" / "kernels"))


def tree(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def test_clean(home: Path, made: Path) -> None:
    models, downloads = places.models(), places.downloads()
    kept = downloads / "org--kept" / ("a" * 40)
    shutil.copytree(made / "source" / "tiny", kept)
    outside = home / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    stays = [models / "notes.txt", models / ".hidden", models / ".x.1-a.part.txt", kept / "config.json", outside / "precious"]
    goes = [
        models / ".tiny-int4.safetensors.999999999-ab.part",
        models / ".tiny-int4.safetensors.lock",
        models / ".tiny-int4.safetensors.pull",
        models / ".tiny-int4.safetensors.journal",
        downloads / "org--name" / ("b" * 40) / "model.safetensors.part",
        downloads / "org--name" / ("b" * 40) / "config.json",
        downloads / f".org--name@{'b' * 40}.lock",
        places.kernels() / ("0" * 16) / "select.rows-x.o",
    ]
    mine = places.kernels() / objects.maker() / "select.rows-x.o"
    for path in (*stays, *goes, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"12345")
    (downloads / "org--name" / ("b" * 40) / "link").symlink_to(outside)
    (downloads / "link").symlink_to(outside)
    (models / ".link.lock").symlink_to(outside / "precious")
    (places.kernels() / ("f" * 16)).symlink_to(outside)
    before = tree(home)
    dry = answer(llm(home, "clean", "--dry-run"))
    assert tree(home) == before
    done = llm(home, "clean")
    assert answer(done) == dry and "free again" in done.stderr
    assert not any(path.exists() for path in goes) and all(path.exists() for path in (*stays, mine))
    assert not (downloads / "org--name").exists() and (models / ".link.lock").is_symlink()
    assert "nothing to remove" in llm(home, "clean").stderr
    assert answer(llm(home, "list")).count("tiny") == 4


def test_clean_leaves_work_in_progress_alone(home: Path) -> None:
    downloads, models = places.downloads(), places.models()
    part = downloads / "org--name" / ("b" * 40) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    lock = downloads / ".org--name@b.lock"
    files = [part, lock, models / ".tiny-int4.safetensors.lock", models / ".tiny-int4.safetensors.pull"]
    files += [models / f".tiny-int4.safetensors.{os.getpid()}-ab.part"]
    for path in files:
        path.write_bytes(b"x")
    with lock.open("rb") as first, (models / ".tiny-int4.safetensors.lock").open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        assert "nothing to remove" in llm(home, "clean").stderr
    assert all(path.exists() for path in files)
    assert answer(llm(home, "clean")).count("unfinished") == 4
    assert files[-1].exists(), "its process lives"


def test_clean_follows_no_link_to_the_downloads(home: Path) -> None:
    (home / "photos").mkdir()
    (home / "photos" / "a.part").write_text("x")
    places.downloads().parent.mkdir(parents=True, exist_ok=True)
    places.downloads().symlink_to(home / "photos")
    assert "nothing to remove" in llm(home, "clean").stderr
    assert (home / "photos" / "a.part").exists()


# llm rm


def test_rm_follows_no_link(home: Path) -> None:
    outside = home / "outside.safetensors"
    os.rename(model_file(home, "int8"), outside)
    model_file(home, "int8").symlink_to(outside)
    assert answer(llm(home, "rm", "tiny")).count("removed") == 2
    assert outside.exists()
    assert "cannot be removed" in refused(llm(home, "rm", "demo"), 2)
