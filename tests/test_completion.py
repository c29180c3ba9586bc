"""Completion: what comes next in a line, and that real shells ask and get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pexpect
import pytest

from llmcli import places
from llmcli.cli.app import COMMANDS
from llmcli.cli.complete import complete, split


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with models of these names (nothing in them: completion must not look) and one that no shell should see."""
    home = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCLI_HOME", str(home))
        places.models().mkdir(parents=True)
        for name in ("small-int4", "small-int8", "org--other-none", "$(touch evil)-int4", "not-a-model", ".hidden-int4"):
            (places.models() / f"{name}.safetensors").touch()
        yield home


def words(line: str) -> list[str]:
    return [word for word, _ in complete(line).words]


def test_words_of_a_line() -> None:
    assert split("llm run ") == ["llm", "run", ""]
    assert split("llm run 'it s") == ["llm", "run", "it s"]
    assert split("llm run \"it's ") == ["llm", "run", "it's "]
    assert split(r"llm show my\ mod") == ["llm", "show", "my mod"]
    assert split("") == []


def test_commands_and_flags() -> None:
    assert words("llm ") == words("/usr/bin/llm ") == list(COMMANDS)
    assert words("llm -q ve") == words("llm --color never ve") == ["verify"]
    assert words("llm --c") == ["--color"]
    assert words("llm run --te") == ["--temp", "--temperature"]
    assert words("llm run 'some text' --jso") == ["--json", "--jsonl"]
    assert {"--max-tokens", "--quiet", "--help"} <= set(words("llm run -")) and "-n" not in words("llm run -")
    assert words("llm run --help-me") == words("llm nonsense ") == words("llm run -- --te") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_offered(command: str) -> None:
    from llmcli.cli import commands
    from llmcli.cli.console import Console

    flags = {flag for p in commands.command(command, Console()).params if p.param_type_name == "option" for flag in p.opts}
    assert {flag for flag in flags if flag.startswith("--")} <= set(words(f"llm {command} -"))


def test_values() -> None:
    assert words("llm import x --quant ") == ["int8", "int4", "none"]
    assert words("llm import x --quant=i") == ["--quant=int8", "--quant=int4"]
    assert words("llm run --kv f") == ["f32", "f16"]
    assert words("llm --color a") == words("llm show --color a") == ["auto", "always"]
    assert words("llm run --device ") == ["auto", "cpu", "cuda", "reference"]
    assert words("llm run --temp ") == words("llm run -n ") == []
    assert words("llm completion z") == ["zsh"]
    assert "commands" in words("llm docs ")


def test_models() -> None:
    here = ["demo", "small:int4", "small:int8", "small", "org/other"]
    assert sorted(words("llm run -m ")) == sorted(words("llm show ")) == sorted(words("llm verify small ")) == sorted(here)
    assert words("llm run -m org/other:") == words("llm run --model org/other:n") == ["org/other:none"]
    assert words("llm run --model=sm") == ["--model=small:int4", "--model=small:int8", "--model=small"]
    assert words("llm show small ") == words("llm run text ") == []
    assert "gpt2" in words("llm pull g") and "gpt2" not in words("llm run -m g")


def test_files() -> None:
    for line in ("llm run -f ", "llm import ", "llm run --file=", "llm show ", "llm run -o "):
        assert complete(line).files, line
    for line in ("llm run ", "llm rm ", "llm run --temp ", "llm docs ", "llm run -n "):
        assert not complete(line).files, line


def test_a_wrong_models_toml_spoils_no_completion(models: Path) -> None:
    path = places.config() / "models.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[[[")
    try:
        assert "small" in words("llm pull s")
    finally:
        path.unlink()


def test_it_imports_nothing_heavy(models: Path) -> None:
    code = (
        "import sys; from llmcli.cli.complete import complete; complete('llm pull -'), complete('llm run -m '), complete('llm docs ');"
        "print(sorted({'numpy', 'llvmlite', 'numba', 'rich', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with the command `llm`, a file to complete, and an environment that finds the command."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m llmcli "$@"\n')
    (folder / "llm").chmod(0o755)
    (folder / "essay.txt").touch()
    return SimpleNamespace(
        folder=folder, settings={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(folder)}
    )


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


CASES = [
    ("llm verif", "llm verify "),
    ("llm run --max", "llm run --max-tokens "),
    ("llm run -m org/oth", "llm run -m org/other "),
    ("llm run -m org/other:n", "llm run -m org/other:none "),
    ("llm run --model=org/other:n", "llm run --model=org/other:none"),
    ("llm import . --quant no", "llm import . --quant none "),
    ("llm run -f ess", "llm run -f essay.txt"),
]


@pytest.mark.parametrize(("typed", "completed"), CASES)
@pytest.mark.parametrize(
    ("name", "options", "prepare"),
    [("bash", ["--norc", "-i"], ""), ("zsh", ["-f", "-i"], "autoload -U compinit; compinit -u; unsetopt zle_bracketed_paste; ")],
)
def test_a_shell_completes(name: str, options: list[str], prepare: str, typed: str, completed: str, program: SimpleNamespace) -> None:
    child = pexpect.spawn(
        shell(name), options, env=program.settings, cwd=str(program.folder), encoding="utf-8", timeout=20, dimensions=(24, 200)
    )
    try:
        child.sendline(f'PS1="; "; {prepare}eval "$(llm completion {name})"; echo rea""dy')
        child.expect("ready\r\n")
        child.send(typed + "\t")
        child.expect_exact(completed)
    finally:
        child.close(force=True)


@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_fish_completes(typed: str, completed: str, program: SimpleNamespace) -> None:
    script = f"llm completion fish | source; complete -C '{typed}'"
    done = subprocess.run(
        [shell("fish"), "--no-config", "-c", script], env=program.settings, cwd=program.folder, capture_output=True, text=True, timeout=30
    )
    assert completed.split()[-1] in [line.partition("\t")[0] for line in done.stdout.splitlines()], done
