"""Model folders in the Hub's layout: links, shards and indexes; nothing outside is opened, nothing is unpickled."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from checkpoints import build
from llmcli.errors import CorruptFile, NotFound, UsageError
from llmcli.weights import folder


def model_folder(path: Path, **arrays: Any) -> Path:
    path.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    if arrays:
        safetensors.numpy.save_file({name: np.asarray(array, np.float32) for name, array in arrays.items()}, path / "model.safetensors")
    return path


def shard(path: Path, weight_map: dict[str, str]) -> None:
    (path / folder.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_is_read_through_links(tmp_path: Path) -> None:
    """A hub's cache: snapshots of links to blobs."""
    blobs = model_folder(tmp_path / "blobs", x=[1, 2])
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link"):
        with folder.open_folder(path) as model:
            assert model.files == {"config.json": b"{}", "tokenizer.json": b"{}"}
            assert model.checkpoint.read("x", 4, 4).view(np.float32).tolist() == [2]


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "config.json", folder.INDEX, folder.WEIGHTS, "b.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was cloned or unpacked may have links to anything of ours, which would become a part of the model."""
    path, secret = model_folder(tmp_path / "m", x=[1]), tmp_path / "secret"
    if name in (folder.INDEX, "b.safetensors"):
        (path / folder.WEIGHTS).unlink()
        shard(path, {"x": "b.safetensors"})
    (path / name).unlink(missing_ok=True)
    safetensors.numpy.save_file({"x": np.ones(1, np.float32)}, secret)
    (path / name).symlink_to("../secret")
    touched: list[str] = []
    real: Callable[..., int] = os.open
    monkeypatch.setattr(os, "open", lambda file, *rest, **more: touched.append(os.path.realpath(file)) or real(file, *rest, **more))
    with pytest.raises(CorruptFile, match="a link out of the folder"):
        folder.open_folder(path)
    assert str(secret) not in touched


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "m")
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, path / "a.safetensors")
    safetensors.numpy.save_file({"y": np.ones(3, np.float32)}, path / "b.safetensors")
    shard(path, {"x": "a.safetensors", "y": "b.safetensors"})
    with folder.open_folder(path) as model:
        assert model.checkpoint.tensors.keys() == {"x", "y"}
    shard(path, {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"})
    with pytest.raises(CorruptFile, match='"z" is in no file'):
        folder.open_folder(path)
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, path / "b.safetensors")
    with pytest.raises(CorruptFile, match='"x" is also in'):
        folder.open_folder(path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        "x.bin",
        ".x.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
    ],
)
def test_an_index_cannot_lead_elsewhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_folder(tmp_path / "m")
    (tmp_path / "secret.safetensors").write_bytes(build(b"{}"))
    shard(path, {"x": name})
    touched: list[str] = []
    real: Callable[..., int] = os.open
    monkeypatch.setattr(os, "open", lambda file, *rest, **more: touched.append(str(file)) or real(file, *rest, **more))
    with pytest.raises(CorruptFile):
        folder.open_folder(path)
    assert all(Path(file).parent == path for file in touched)


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"x": 1}}', b'{"weight_map": {"x": "a", "x": "b"}}', b"\xff"],
)
def test_broken_indexes_are_refused(tmp_path: Path, index: bytes) -> None:
    path = model_folder(tmp_path / "m")
    (path / folder.INDEX).write_bytes(index)
    with pytest.raises(CorruptFile):
        folder.open_folder(path)


def test_an_index_of_a_million_files_is_refused(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "m")
    names = b",".join(b'"%d":"%d.safetensors"' % (i, i) for i in range(1_000_000))
    (path / folder.INDEX).write_bytes(b'{"weight_map":{' + names + b"}}")
    start = time.process_time()
    with pytest.raises(CorruptFile):
        folder.open_folder(path)
    assert time.process_time() - start < 3


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        folder.open_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        folder.open_folder(tmp_path / "file")
    with pytest.raises(NotFound, match="no config.json"):
        folder.open_folder(tmp_path)
    path = model_folder(tmp_path / "m", x=[1])
    (path / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="no tokenizer.json"):
        folder.open_folder(path)
    path = model_folder(tmp_path / "shards")
    shard(path, {"x": "a.safetensors"})
    with pytest.raises(NotFound, match="has no a.safetensors"):
        folder.open_folder(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_folder(tmp_path / "m")
    (path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="no safetensors") as caught:
        folder.open_folder(path)
    assert caught.value.code == 4 and "run code" in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "m", x=[1])
    with (path / "tokenizer.json").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(CorruptFile, match="too many for such a file"):
        folder.open_folder(path)
