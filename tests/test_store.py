"""Models on this machine: what a reference means, listings that nothing spoils, removals that stay inside, and settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llmcli import places, settings
from llmcli.errors import DiskError, NotFound, UsageError
from llmcli.models.names import copy
from llmcli.plan import Weight
from llmcli.weights import store, writer
from llmcli.weights.aliases import aliases
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File

Add = Callable[..., Path]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """quantization -> a tiny packed file."""
    folder = tmp_path_factory.mktemp("made")
    safetensors.numpy.save_file({"x": np.ones((3, 40), np.float32)}, folder / "x.safetensors")
    made = {}
    with File(folder / "x.safetensors") as file:
        for quantization in ("int4", "int8", "none"):
            made[quantization] = folder / f"m-{quantization}.safetensors"
            texts = {"name": "m", "source": "here", "revision": "", "spec": "{}", "created": "2020-02-02"}
            weights = {"w": Weight("w", (3, 40), "matrix")}
            writer.write_model(made[quantization], weights, {"w": copy("x")}, Checkpoint([file]), quantization, texts, {})
    yield made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, an empty demo folder, and a current folder that holds nothing."""
    monkeypatch.setenv("LLMCLI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLMCLI_MODEL", raising=False)
    monkeypatch.setattr(places, "demo", lambda: tmp_path / "demo")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.fixture
def add(home: Path, model_file: dict[str, Path]) -> Add:
    def put(name: str, *quantizations: str, demo: bool = False) -> Path:
        folder = places.demo() if demo else places.models()
        folder.mkdir(parents=True, exist_ok=True)
        for quantization in quantizations:
            path = folder / f"{name}-{quantization}.safetensors"
            shutil.copy(model_file[quantization], path)
        return path

    return put


def test_a_name_finds_its_file(add: Add) -> None:
    path = add("small", "none")
    assert store.find("small") == path
    add("small", "int4")
    assert store.find("small").name == "small-int4.safetensors", "int4 before none"
    add("small", "int8")
    assert store.find("small").name == "small-int8.safetensors", "int8 before all"
    assert store.find("small:none").name == "small-none.safetensors"
    assert store.find("small:int4").name == "small-int4.safetensors"
    assert store.find("small:int8") == store.path_of("small", "int8")


def test_the_aliases_default_wins(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add("tiny", "int4", "int8")
    places.config().mkdir(parents=True)
    (places.config() / "models.toml").write_text('[tiny]\nquantization = "int4"\n')
    assert store.find("tiny").name == "tiny-int4.safetensors"
    add("other", "int8")
    assert store.find("other:int8").name == "other-int8.safetensors"


def test_an_existing_path_wins(add: Add, home: Path) -> None:
    path = add("small", "int8")
    assert store.find(str(path)) == path
    shutil.copy(path, "small")
    assert store.find("small") == Path("small")
    os.remove("small")
    os.mkdir("small")
    assert store.find("small") == path, "a folder of that name is no model"


def test_names_of_organisations(add: Add) -> None:
    path = store.path_of("org/Model-1.5_b", "int4")
    assert path.parent == places.models() and path.name == "org--Model-1.5_b-int4.safetensors"
    add("org--Model-1.5_b", "int4")
    assert store.find("org/Model-1.5_b") == path
    assert [model.name for model in store.every()] == ["org/Model-1.5_b"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b/c", "/x", "a b", "a:int4", "-x", "a--b", "a..b", "x\n", "x\0", "é", "x" * 200]
)
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        store.checked_name(name)
    with pytest.raises((NotFound, UsageError)):
        store.find(name)


def test_unknown_names_get_near_matches(add: Add) -> None:
    add("stories", "int8")
    with pytest.raises(NotFound, match="Did you mean stories") as caught:
        store.find("storys")
    assert caught.value.code == 4
    with pytest.raises(NotFound, match="Did you mean demo"):
        store.find("dem")
    with pytest.raises(NotFound, match="llm list"):
        store.find("qqqq")
    with pytest.raises(NotFound, match="here is stories:int8"):
        store.find("stories:int4")
    with pytest.raises(NotFound, match="no file"):
        store.find("./nothing.safetensors")
    with pytest.raises(UsageError, match="is a folder"):
        store.find("..")


def test_the_default_model(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = add("demo", "int8", demo=True)
    assert store.find(None) == demo == store.find("demo") == store.find("demo:int8")
    small = add("small", "int8")
    places.config().mkdir(parents=True)
    (places.config() / "config.toml").write_text('model = "small"\n')
    assert store.find(None) == small
    monkeypatch.setenv("LLMCLI_MODEL", "demo")
    assert store.find(None) == demo


def test_the_listing(add: Add) -> None:
    assert store.every() == []
    demo = add("demo", "int8", demo=True)
    add("b", "int8", "int4")
    add("a", "none")
    found = store.every()
    assert [(m.name, m.quantization) for m in found] == [("demo", "int8"), ("a", "none"), ("b", "int4"), ("b", "int8")]
    assert found[0] == store.Model("demo", "int8", demo.stat().st_size, "2020-02-02", "here", demo)


def test_nothing_spoils_the_listing(add: Add, home: Path) -> None:
    good = add("good", "int8")
    folder = places.models()
    (folder / "notes.txt").write_text("not a model")
    (folder / ".x-int8.safetensors.1-a.part").write_bytes(b"half")
    (folder / ".hidden-int8.safetensors").write_bytes(b"")
    (folder / "folder-int8.safetensors").mkdir()
    (folder / "dangling-int8.safetensors").symlink_to(home / "nothing")
    (folder / "loop-int8.safetensors").symlink_to(folder / "loop-int8.safetensors")
    (folder / "empty-int8.safetensors").write_bytes(b"")
    (folder / "cut-int8.safetensors").write_bytes(good.read_bytes()[:300])
    (folder / "foreign.safetensors").write_bytes(b"x" * 100)
    (folder / "renamed-int4.safetensors").write_bytes(good.read_bytes())
    os.mkfifo(folder / "pipe-int8.safetensors")
    models = {model.name: model for model in store.every()}
    assert models.keys() == {"good", "folder-int8", "dangling", "loop", "empty", "cut", "foreign", "renamed", "pipe-int8"}
    assert {name for name, model in models.items() if not model.damaged} == {"good"}
    assert "int8" in models["renamed"].damaged


def test_removing(add: Add, home: Path) -> None:
    add("a", "int4", "int8", "none")
    keep = add("b", "int8")
    assert [path.name for path in store.remove("a:int4")] == ["a-int4.safetensors"]
    assert [path.name for path in store.remove("a")] == ["a-int8.safetensors", "a-none.safetensors"]
    with pytest.raises(NotFound):
        store.remove("a")
    with pytest.raises(NotFound):
        store.remove("b:none")
    assert keep.exists()


def test_removing_stays_inside(add: Add, home: Path) -> None:
    outside = home / "outside-int8.safetensors"
    shutil.copy(add("a", "int8"), outside)
    (places.models() / "link-int8.safetensors").symlink_to(outside)
    (places.models() / "dead-int8.safetensors").symlink_to(home / "nothing")
    assert [path.name for path in store.remove("link")] == ["link-int8.safetensors"]
    assert [path.name for path in store.remove("dead")] == ["dead-int8.safetensors"]
    assert outside.exists()
    (places.models() / "folder-int8.safetensors").mkdir()
    with pytest.raises(DiskError):
        store.remove("folder")
    with pytest.raises(UsageError, match="is a path"):
        store.remove(str(outside))
    for reference in ("../outside", "../../outside", str(outside.with_name("outside"))):
        with pytest.raises((NotFound, UsageError)):
            store.remove(reference)
    assert outside.exists()


def test_the_demo_stays(add: Add) -> None:
    path = add("demo", "int8", demo=True)
    with pytest.raises(UsageError, match="comes with llm"):
        store.remove("demo")
    mine = add("demo", "int4")
    assert store.remove("demo") == [mine] and path.exists()


def test_shipped_models_are_well_described() -> None:
    found = aliases()
    assert "demo" in found and all(alias.about and alias.parameters > 0 for alias in found.values())


@pytest.mark.parametrize(
    "text",
    ["x = 1", "[x]\nnothing = 1", "[x]\nparameters = '5'", "[x]\ngated = 1", "[x]\nquantization = 'int3'", "[x", "\xff"],
)
def test_a_wrong_models_toml_is_named(text: str) -> None:
    places.config().mkdir(parents=True)
    (places.config() / "models.toml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match="models.toml"):
        aliases()


@pytest.mark.parametrize("text", ["model = 1", "modell = 'x'", "model = ", "[model]"])
def test_a_wrong_config_toml_is_named(text: str) -> None:
    places.config().mkdir(parents=True)
    (places.config() / "config.toml").write_text(text)
    with pytest.raises(UsageError, match="config.toml"):
        settings.default_model()
