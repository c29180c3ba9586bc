"""The packed file: what goes in comes out, no bit changes unnoticed, and it appears whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llmcli.errors import CorruptFile, HashMismatch, LlmError, ModelFileError
from llmcli.formats import format as formats
from llmcli.plan import Weight
from llmcli.weights import packed
from llmcli.weights.checksum import checksum
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File
from small_model import ARRAYS, FILES, SOURCES, TEXTS, WEIGHTS, checkpoint, load, path, write

__all__ = ["checkpoint", "path"]  # fixtures

FORMATS = {
    "int4": ["int8", "vector", "vector", "int4", "int4", "f32", "int4"],
    "int8": ["int8", "vector", "vector", "int8", "int8", "f32", "int8"],
    "none": ["f32", "vector", "vector", "f16", "f16", "f32", "f32"],
}


@pytest.mark.parametrize("quantization", FORMATS)
def test_what_goes_in_comes_out(quantization: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "m.safetensors"
    write(path, checkpoint, quantization)
    with packed.open(path) as model:
        assert (model.name, model.quantization, model.spec, model.source) == ("small", quantization, TEXTS["spec"], "a test")
        assert model.created == "2000-01-01" and {name: model.file(name) for name in model.files} == FILES
        model.check(WEIGHTS)
        model.verify()
        weights = model.load()
        assert model.weights_size == sum(len(tensor.data) for tensor in weights.values())
    assert list(weights) == list(WEIGHTS) and [tensor.format for tensor in weights.values()] == FORMATS[quantization]
    for name, tensor in weights.items():
        arrays = [ARRAYS[source].astype(np.float32) for source in SOURCES[name].names]
        assert tensor.shape == WEIGHTS[name].shape and tensor.data.ctypes.data % 64 == 0
        if tensor.format == "vector":
            assert np.array_equal(tensor.vector(), arrays[0])
        else:
            module = formats.get(tensor.format)
            assert np.array_equal(tensor.data, np.concatenate([module.pack(array) for array in arrays]))


def test_other_tools_can_open_it(path: Path) -> None:
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format_version"] == "1"
        assert file.get_tensor("file:tokenizer.json").tobytes().rstrip(b"\0") == FILES["tokenizer.json"]
        assert set(file.keys()) == {*WEIGHTS, *(f"file:{name}" for name in FILES)}
    with File(path) as mine:
        assert mine.data_start % 64 == 0
        assert all(t.dtype == "U8" and t.start % 64 == 0 and t.size % 64 == 0 for t in mine.tensors.values())


def test_the_same_model_gives_the_same_bytes(path: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.weights import convert

    monkeypatch.setattr(convert, "WIDEST", 1000)
    write(tmp_path / "again.safetensors", checkpoint)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_loading_on_threads_with_a_fast_checksum(path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PIECE", 192)
    calls: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []

    def fast(address: int, size: int, first: int) -> int:
        calls.append((address, size))
        return checksum(np.frombuffer(ctypes.string_at(address, size), np.uint8), first)

    with packed.open(path) as model:
        wanted = model.load(threads=1)
        found = model.load(fast=fast, threads=threads, progress=lambda done, total: seen.append((done, total)))
        assert sum(size for _, size in calls) == model.weights_size
    assert all(a + size == b for (a, size), (b, _) in itertools.pairwise(sorted(calls))), "each byte once"
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert all(np.array_equal(found[name].data, wanted[name].data) for name in wanted)


def test_a_hundred_flipped_bits_are_all_noticed(path: Path) -> None:
    content = path.read_bytes()
    with File(path) as file:
        start, tensors = file.data_start, list(file.tensors.values())
    rng = np.random.default_rng(1)
    places = [*rng.integers(0, start, 30), *rng.integers(start, len(content), 90)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        for read in (load, deep):
            with pytest.raises(LlmError) as caught:
                read(path)
            assert caught.value.code in ((6,) if place >= start else (3, 6)) and "\n" not in str(caught.value)
            if place >= start:
                name = next(t.name for t in tensors if t.start <= place < t.start + t.size)
                assert isinstance(caught.value, HashMismatch) and name in str(caught.value)


def deep(path: Path) -> None:
    with packed.open(path) as model:
        model.verify()


def test_checksums_can_be_left_out(path: Path) -> None:
    with File(path) as file:
        place = file.tensors["layers.0.up"].start
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with packed.open(path) as model:
        model.load(verify=False)
        with pytest.raises(HashMismatch, match="layers.0.up"):
            model.load()


def test_cut_off_files_are_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in [*range(0, 64, 7), 1000, 5000, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(CorruptFile):
            packed.open(path)
    path.write_bytes(content)
    with packed.open(path) as model:
        os.truncate(path, len(content) - 6000)
        for read in (model.load, model.verify):
            with pytest.raises(CorruptFile, match="cut off"):
                read()


def rewrite(path: Path, edit: Callable[[dict[str, str], dict[str, Any], dict[str, Any]], None]) -> None:
    """Edits the metadata, the table and the tensors of the header, and makes its hash right again."""
    with File(path) as file:
        header, data = json.loads(file.header), path.read_bytes()[file.data_start :]
    texts = header.pop("__metadata__")
    table = json.loads(texts["tensors"])
    edit(texts, table, header)
    if "tensors" in texts and texts["tensors"].startswith("{"):
        texts["tensors"] = json.dumps(table)
    if "header_sha256" in texts:
        texts["header_sha256"] = "0" * 64
    made = json.dumps({"__metadata__": texts, **header}, separators=(",", ":")).encode()
    made = made.ljust(-(-(8 + len(made)) // 64) * 64 - 8)
    made = made.replace(b'"header_sha256":"' + b"0" * 64, b'"header_sha256":"' + hashlib.sha256(made).hexdigest().encode())
    path.write_bytes(len(made).to_bytes(8, "little") + made + data)


UP = "layers.0.up"
EDITS: dict[str, Callable[[dict[str, str], dict[str, Any], dict[str, Any]], None]] = {
    "version": lambda texts, table, tensors: texts.update(format_version="0"),
    "no version": lambda texts, table, tensors: texts.pop("format_version") and None,
    "odd version": lambda texts, table, tensors: texts.update(format_version="1.5"),
    "quantization": lambda texts, table, tensors: texts.update(quantization="int3"),
    "a name of two lines": lambda texts, table, tensors: texts.update(name="m\nllm: error: forged: line"),
    **{f"no {key}": lambda texts, table, tensors, key=key: texts.pop(key) and None for key in (*packed.TEXTS, "tensors", "header_sha256")},
    "table": lambda texts, table, tensors: texts.update(tensors="[]"),
    "table of numbers": lambda texts, table, tensors: table.update({UP: 1}),
    "missing": lambda texts, table, tensors: table.pop(UP) and None,
    "extra": lambda texts, table, tensors: table.update(more=table[UP]),
    "bit width": lambda texts, table, tensors: table[UP].update(format="int8"),
    "format": lambda texts, table, tensors: table[UP].update(format="int5"),
    "path": lambda texts, table, tensors: table[UP].update(format="../int4"),
    "vector": lambda texts, table, tensors: table[UP].update(format="vector"),
    "file": lambda texts, table, tensors: table[UP].update(format="file"),
    "no file": lambda texts, table, tensors: table["file:LICENSE"].update(format="vector"),
    "rows": lambda texts, table, tensors: table[UP].update(shape=[86, 40]),
    "columns": lambda texts, table, tensors: table[UP].update(shape=[70, 70]),
    "negative": lambda texts, table, tensors: table[UP].update(shape=[-70, -40]),
    "dimensions": lambda texts, table, tensors: table[UP].update(shape=[70]),
    "float shape": lambda texts, table, tensors: table[UP].update(shape=[70.0, 40.0]),
    "size": lambda texts, table, tensors: table[UP].update(size=table[UP]["size"] - 64),
    "another size": lambda texts, table, tensors: table[UP].update(shape=[16, 32], size=packed.Entry.of("int4", (16, 32)).size),
    "float size": lambda texts, table, tensors: table[UP].update(size=float(table[UP]["size"])),
    "checksum": lambda texts, table, tensors: table[UP].update(checksum="x" * 16),
    "sha256": lambda texts, table, tensors: table[UP].update(sha256="0" * 63),
    "type": lambda texts, table, tensors: tensors[UP].update(dtype="I8"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_wrong_descriptions_are_refused(path: Path, edit: str) -> None:
    rewrite(path, EDITS[edit])
    with pytest.raises(CorruptFile) as caught:
        packed.open(path)
    assert caught.value.code == 3 and str(path) in str(caught.value)


def test_an_untouched_description_is_accepted(path: Path) -> None:
    rewrite(path, lambda texts, table, tensors: None)
    load(path)
    deep(path)


def test_a_newer_version_asks_for_an_update(path: Path) -> None:
    rewrite(path, lambda texts, table, tensors: texts.update(format_version="2", tensors="another way of saying it"))
    with pytest.raises(ModelFileError, match="made by a newer llm.* Update llm"):
        packed.open(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "m.safetensors")
    with pytest.raises(CorruptFile, match="llm import"):
        packed.open(tmp_path / "m.safetensors")


def test_a_plan_that_does_not_fit_is_refused(path: Path) -> None:
    with packed.open(path) as model:
        for change in (
            {UP: Weight(UP, (70, 41), "matrix")},
            {UP: Weight(UP, (70, 40), "vector")},
            {"position": Weight("position", (9, 40), "matrix")},
            {"more": Weight("more", (1, 1), "matrix")},
        ):
            with pytest.raises(CorruptFile, match="weight"):
                model.check({**WEIGHTS, **change})
        with pytest.raises(CorruptFile, match="not part of the model"):
            model.check({UP: WEIGHTS[UP]})


def test_a_file_that_it_does_not_hold(path: Path) -> None:
    with packed.open(path) as model, pytest.raises(CorruptFile, match="it holds no chat_template.jinja"):
        model.file("chat_template.jinja")
