"""Managing models by commands: known ones, what each is, whether it is whole, and which is the default."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from llmcli import settings
from llmcli.cli.table import table
from llmcli.errors import UsageError
from llmcli.models import architectures, decoder
from managed import damage, home, made, model_file
from test_commands import answer, llm, refused

__all__ = ["home", "made"]  # fixtures

ROOT = Path(__file__).resolve().parent.parent


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


def test_descriptions_stand_below_where_lines_would_be_too_long() -> None:
    rows = [("NAME", "SIZE", "ABOUT"), ("one", "1", "several words " * 6), ("two", "22", "")]
    wide = table(rows, right=[1])
    assert table(rows, right=[1], columns=200) == wide and max(map(len, wide.splitlines())) > 40
    narrow = table(rows, right=[1], columns=40)
    assert max(map(len, narrow.splitlines())) <= 40 and narrow.split() == wide.split()
    assert narrow.splitlines()[:3] == ["NAME  SIZE", "  ABOUT", "one      1"]


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
