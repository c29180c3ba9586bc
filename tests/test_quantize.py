"""`llm quantize`: fewer bits of what is here, from the best source there is, in little memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import random_model
from gguf_files import fixture, write_gguf
from llmcli import places
from llmcli.models import decoder, names
from llmcli.models.spec import Spec
from llmcli.weights import packed, repack, store, writer
from managed import damage, home, lost, made, model_file
from test_commands import answer, llm, refused

__all__ = ["home", "lost", "made"]  # fixtures


def contents(path: Path) -> dict[str, Any]:
    """All that a packed file holds but when it was made and what of."""
    with packed.open(path) as file:
        return {"spec": file.spec, "name": file.name, "entries": file.entries}


def test_quantize_takes_the_most_bits(home: Path, made: Path) -> None:
    """From the unquantized file it is what an import makes."""
    done = llm(home, "quantize", "tiny", "--quant", "int4")
    assert Path(answer(done).strip()) == model_file(home, "int4") and "from tiny:none" in done.stderr
    assert "rounding" not in done.stderr
    answer(llm(home, "import", str(made / "source" / "tiny"), "--quant", "int4", "--name", "tiny2"))
    assert contents(model_file(home, "int4"))["entries"] == contents(store.path_of("tiny2", "int4"))["entries"]
    answer(llm(home, "verify", "tiny:int4"))
    answer(llm(home, "run", "Once", "-m", "tiny:int4", "-n", "3"))
    assert "is here already" in refused(llm(home, "quantize", "tiny", "--quant", "int4"), 2)
    answer(llm(home, "quantize", "tiny:none", "--quant", "int4", "--name", "other"))
    assert contents(store.path_of("other", "int4"))["name"] == "other"


def test_quantize_from_the_source_folder(home: Path, made: Path) -> None:
    model_file(home, "none").unlink()
    done = llm(home, "quantize", "tiny", "--quant", "int4")
    answer(done)
    assert f"from {made / 'source' / 'tiny'}" in done.stderr
    answer(llm(home, "quantize", "tiny", "--quant", "none"))
    assert contents(model_file(home, "none")) == contents(model_file(made, "none"))


def test_quantize_from_a_gguf_file(home: Path, tmp_path: Path) -> None:
    """It is still there, so an int4 model becomes the int8 one that an import makes."""
    file = write_gguf(tmp_path / "model.gguf", *fixture("llama-tied"))
    answer(llm(home, "import", str(file), "--quant", "int4", "--name", "other"))
    done = llm(home, "quantize", "other", "--quant", "int8")
    answer(done)
    assert f"from {file}" in done.stderr and "rounding" not in done.stderr
    answer(llm(home, "import", str(file), "--quant", "int8", "--name", "third"))
    assert contents(store.path_of("other", "int8"))["entries"] == contents(store.path_of("third", "int8"))["entries"]


def test_quantize_from_a_download_that_was_kept(lost: Path, made: Path) -> None:
    """A pulled model has its repository and commit as its source."""
    commit = "a" * 40
    model_file(lost, "none").unlink()
    shutil.copytree(made / "away" / "tiny", places.downloads() / "org--tiny" / commit)
    with packed.open(model_file(lost, "int8")) as file:
        plan = decoder.plan(Spec.from_json(file.spec), 16)
        texts = {"name": "pulled", "source": "org/tiny", "revision": commit, "spec": file.spec}
        sources = {name: names.copy(name) for name in plan.weights}
        files = {name: file.file(name) for name in file.files}
        writer.write_model(store.path_of("pulled", "int8"), plan.weights, sources, repack.Unpacked(file), "int8", texts, files)
    done = llm(lost, "quantize", "pulled", "--quant", "int4")
    assert f"from {places.downloads() / 'org--tiny' / commit}" in done.stderr, done.stderr
    facts = json.loads(answer(llm(lost, "show", "pulled:int4", "--json")))
    assert (facts["source"], facts["revision"]) == ("org/tiny", commit)


def test_a_source_folder_that_changed_is_not_used(home: Path, tmp_path: Path) -> None:
    weights = random_model.tensors()
    source = random_model.write_folder(tmp_path / "mine", weights=weights)
    answer(llm(home, "import", str(source)))
    weights["model.norm.weight"][3] += 0.01
    random_model.write_folder(source, weights=weights)
    done = llm(home, "quantize", "mine", "--quant", "int4")
    answer(done)
    assert "from mine:int8: rounding twice" in done.stderr
    (source / "config.json").write_text("{}")
    done = llm(home, "quantize", "mine:int8", "--quant", "int4", "--name", "third")
    answer(done)
    assert "from mine:int8" in done.stderr


def test_quantizing_twice(lost: Path) -> None:
    """int4 of int8 loses a little more than int4 of the original, and says so."""
    answer(llm(lost, "quantize", "tiny:none", "--quant", "int4", "--name", "once"))
    model_file(lost, "none").unlink()
    done = llm(lost, "quantize", "tiny", "--quant", "int4")
    answer(done)
    assert "rounding twice loses a little more" in done.stderr
    listed = json.loads(answer(llm(lost, "list", "--json")))["models"]
    assert next(model for model in listed if model["name"] == "tiny" and model["quantization"] == "int4")["source"].startswith(
        "tiny:int8 of "
    )
    original = random_model.tensors()["model.layers.0.mlp.down_proj.weight"]
    errors = []
    for path in (store.path_of("once", "int4"), model_file(lost, "int4")):
        with packed.open(path) as file:
            raw = repack.Unpacked(file).read("layers.0.down", 0, original.size * 4)
        errors.append(float(np.square(raw.view(np.float32).reshape(original.shape) - original).mean()))
    assert errors[0] < errors[1] < 1.05 * errors[0]


def test_what_quantizing_cannot_do(lost: Path) -> None:
    model_file(lost, "none").unlink()
    assert "does not come back" in refused(llm(lost, "quantize", "tiny:int8", "--quant", "none"), 2)
    answer(llm(lost, "quantize", "tiny:int8", "--quant", "int4", "--name", "small"))
    assert "does not come back" in refused(llm(lost, "quantize", "small", "--quant", "int8"), 2)
    assert "Did you mean tiny" in refused(llm(lost, "quantize", "tinny", "--quant", "int4"), 4)
    assert "--quant" in refused(llm(lost, "quantize", "tiny"), 2)
    damage(model_file(lost, "int8"))
    refused(llm(lost, "quantize", "tiny", "--quant", "int4"), 6)
    assert not model_file(lost, "int4").exists()


def test_quantizing_needs_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One packed weight and some rows of floats, whatever the size of the model."""
    monkeypatch.setenv("LLMCLI_HOME", str(tmp_path))
    large = random_model.CONFIG | {"hidden_size": 768, "intermediate_size": 4096, "num_hidden_layers": 4}
    source = random_model.write_folder(tmp_path / "source" / "large", large)
    path = Path(answer(llm(tmp_path, "import", str(source), "--quant", "none")).strip())
    assert path.stat().st_size > 150e6
    tracemalloc.start()
    try:
        answer(llm(tmp_path, "quantize", "large", "--quant", "int8"))
        assert tracemalloc.get_traced_memory()[1] < 36e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "int8", "int4"])
def test_rows_of_a_packed_matrix(format: str, tmp_path: Path) -> None:
    """Any rows that begin at a multiple of 16, of any of the experts, decode as the whole does."""
    from llmcli.formats import format as formats

    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 37, 70)).astype(np.float32)
    module = formats.get(format)
    parts = [module.pack(part) for part in values]
    data = np.concatenate(parts)

    class File:
        entries = {"w": packed.Entry.of(format, values.shape)}

        def read(self, name: str, start: int, size: int) -> Any:
            return data[start : start + size]

    reader = repack.Unpacked(File())  # type: ignore[arg-type]
    for expert, start, stop in ((0, 0, 37), (1, 0, 16), (1, 16, 37), (2, 32, 37), (2, 16, 32)):
        raw = reader.read("w", (expert * 37 + start) * 280, (stop - start) * 280)
        assert (raw.view(np.float32).reshape(-1, 70) == module.unpack(parts[expert], 37, 70)[start:stop]).all()
