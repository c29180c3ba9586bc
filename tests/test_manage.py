"""Managing models by commands: known ones, what each is, verifying, quantizing, choosing, cleaning."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tomllib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import random_model
from llmcli import places, settings
from llmcli.backends.cpu import objects
from llmcli.errors import UsageError
from llmcli.models import architectures, decoder
from llmcli.weights import packed, repack, store
from test_commands import answer, llm, refused

ROOT = Path(__file__).resolve().parent.parent


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


def contents(path: Path) -> dict[str, Any]:
    """All that a packed file holds but when it was made and what of."""
    with packed.open(path) as file:
        return {"spec": file.spec, "name": file.name, "entries": file.entries}


# llm models


KNOWN = json.loads((ROOT / "tests" / "fixtures" / "known_models.json").read_text())
"""The sizes in the config.json of each model with a short name, as published."""


def test_the_known_models_are_those_of_the_fixture() -> None:
    known = tomllib.loads((ROOT / "models.toml").read_text())
    assert set(known) == {"demo", *KNOWN} and len(known) > 20
    assert len({entry["repository"] for name, entry in known.items() if name != "demo"}) == len(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_has_the_size_that_its_config_gives(name: str) -> None:
    entry = tomllib.loads((ROOT / "models.toml").read_text())[name]
    spec, _ = architectures.describe(KNOWN[name])
    assert decoder.plan(spec, 16).parameters == entry["parameters"]
    assert spec.context == entry["context"]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry["repository"]) and entry["licence"]


def test_models(home: Path) -> None:
    listed = answer(llm(home, "models"))
    assert re.search(r"^smollm2-135m +135M +8,192 +Apache-2.0 +- ", listed, re.MULTILINE)
    assert re.search(r"^llama3.2-1b .*llama3.2 \(gated\)", listed, re.MULTILINE)
    shutil.copy(model_file(home, "int8"), model_file(home, "int8").with_name("mine-int8.safetensors"))
    (home / "config").mkdir()
    (home / "config" / "models.toml").write_text('[mine]\nrepository = "me/mine"\nabout = "a \\u001b[31m colour"\n')
    models = {model["name"]: model for model in json.loads(answer(llm(home, "models", "--json")))["models"]}
    assert models["mine"]["here"] == ["int8"] and models["demo"]["here"] == ["int8"] and models["gpt2"]["here"] == []
    assert models["gpt2"]["repository"] == "openai-community/gpt2" and models["llama3.1-8b"]["gated"] is True
    assert "\x1b" not in answer(llm(home, "models")) and "mine" in answer(llm(home, "models"))


# llm list, llm show


def test_the_listing_says_what_scripts_need(home: Path) -> None:
    found = json.loads(answer(llm(home, "list", "--json")))
    assert found["schema"] == 1
    record = next(model for model in found["models"] if (model["name"], model["quantization"]) == ("tiny", "int8"))
    assert set(record) == {"name", "quantization", "size", "date", "source", "path", "damaged"}
    assert record["source"].endswith("source/tiny") and record["size"] == model_file(home, "int8").stat().st_size


def test_show(home: Path) -> None:
    facts = json.loads(answer(llm(home, "show", "tiny:int8", "--json")))
    assert (facts["architecture"], facts["layers"], facts["vocabulary"]) == ("LlamaForCausalLM", 2, 4096)
    assert facts["memory_bytes"] == sum(facts["memory_by_use"].values()) and facts["memory_context"] == 640
    assert sum(facts["bytes_by_kind"].values()) < facts["bytes"] and facts["bytes_by_kind"]["embedding, int8"] > 0
    assert facts["template"] is False and facts["ends_with"] == "<|endoftext|>"
    small = json.loads(answer(llm(home, "show", "tiny:int8", "--json", "-c", "100")))
    assert small["memory_context"] == 100 and small["memory_by_use"]["cache"] * 3 == facts["memory_by_use"]["cache"]
    assert "640" in refused(llm(home, "show", "tiny", "-c", "641"), 2)
    assert re.search(r"^architecture +LlamaForCausalLM$", answer(llm(home, "show", "tiny")), re.MULTILINE)


def test_show_prints_the_plan_and_the_template(home: Path) -> None:
    plan = answer(llm(home, "show", "tiny", "--plan")).splitlines()
    assert "embed(embedding)" in plan[0] and "top(" in plan[-1] and len(plan) == 31
    assert "no chat template" in refused(llm(home, "show", "tiny", "--template"), 4)
    assert "exclude" in refused(llm(home, "show", "tiny", "--plan", "--json"), 2)


# llm verify


def test_verify(home: Path) -> None:
    assert [line.split(":")[1] for line in answer(llm(home, "verify", "tiny")).splitlines()] == ["int8", "none"]
    assert answer(llm(home, "verify", "tiny:int8", str(model_file(home, "none")))).count("ok") == 2
    assert answer(llm(home, "verify")).count("ok") == 3, "the demo too"
    assert "Did you mean tiny" in refused(llm(home, "verify", "tinny"), 4)


def test_verify_finds_damage_and_goes_on(home: Path) -> None:
    damage(model_file(home, "int8"))
    done = llm(home, "verify", "tiny")
    assert done.returncode == 6 and "tiny:none: ok" in done.stdout and "tiny:int8: damaged: " in done.stdout
    (home / "data" / "models" / "cut-int4.safetensors").write_bytes(model_file(home, "none").read_bytes()[:-10])
    os.rename(model_file(home, "none"), model_file(home, "int4"))
    done = llm(home, "verify", "-q")
    assert done.returncode == 6 and done.stdout.count(": damaged: ") == 3 and "3 of 4 models are damaged" in done.stderr
    model_file(home, "int8").unlink()
    model_file(home, "int4").unlink()
    assert llm(home, "verify").returncode == 3


def test_verify_notices_each_byte(home: Path) -> None:
    path = model_file(home, "int8")
    size, rng = path.stat().st_size, np.random.default_rng(0)
    for at in rng.integers(0, size, 40):
        damage(path, int(at))
        assert llm(home, "verify", "tiny:int8", "-q").returncode in (3, 6)
        damage(path, int(at))
    answer(llm(home, "verify", "tiny:int8", "-q"))


# llm quantize


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


# llm use


def test_use(home: Path) -> None:
    assert answer(llm(home, "use")) == "demo (comes with llm)\n"
    config = home / "config" / "config.toml"
    assert answer(llm(home, "use", "tiny:none")) == f"tiny:none ({config})\n" == answer(llm(home, "use"))
    assert json.loads(answer(llm(home, "show", "--json")))["name"] == "tiny"
    refused(llm(home, "use", "tinny"), 4)
    assert answer(llm(home, "use", str(model_file(home, "int8")))).startswith(str(model_file(home, "int8")))
    assert [path.name for path in config.parent.iterdir()] == ["config.toml"]


def test_use_keeps_the_rest_of_the_file(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "dotfiles.toml"
    config.write_text("# mine\n\nmodel = 'demo'  # for now\n# end")
    (home / "config").mkdir()
    (home / "config" / "config.toml").symlink_to(config)
    answer(llm(home, "use", "tiny"))
    assert config.read_text() == '# mine\n\nmodel = "tiny"  # for now\n# end'
    assert (home / "config" / "config.toml").is_symlink()
    config.write_text('model = "a"\nfuture = 1\n')
    assert "unknown setting" in refused(llm(home, "use", "tiny"), 2)
    assert config.read_text() == 'model = "a"\nfuture = 1\n'


def test_use_with_a_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_MODEL", "demo")
    assert answer(llm(home, "use")) == "demo (LLMCLI_MODEL)\n"
    assert "LLMCLI_MODEL is set and wins" in llm(home, "use", "tiny").stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 'model = "x"\n'),
        ("# a\n", 'model = "x"\n# a\n'),
        ('  model="y"\n', '  model="x"\n'),
        ("[table]\nmodel = 'y'\n", None),
        ('model = """\ny"""\n', None),
        ("'model' = 'y'\n", None),
    ],
)
def test_changing_a_config(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="Write model ="):
            settings.with_model(text, "x")
    else:
        assert settings.with_model(text, "x") == expected


# llm clean


def tree(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def test_clean(home: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_KERNELS", str(home / "cache" / "kernels"))
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
