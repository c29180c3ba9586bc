"""What people read agrees with what the program does: flags, command lines, variables, exit codes and JSON, both ways."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import llmcli
from llmcli import errors
from llmcli.cli import app, commands
from llmcli.cli.app import COMMANDS
from llmcli.cli.console import Console
from llmcli.cli.docs import read, section, topics
from llmcli.doctor.around import VARIABLES
from llmcli.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(llmcli.__file__).parent
DOCS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
VARIABLE = re.compile(r"(?:LLMCLI|HF|HUGGINGFACE|NUMBA|XDG)_[A-Z_]+")


def text(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def flags(command: str | None) -> set[str]:
    made = commands.command(command, Console()) if command else commands.application()
    return {flag for parameter in made.params if parameter.param_type_name == "option" for flag in parameter.opts} | {"-h", "--help"}


def examples(command: str) -> list[str]:
    return [str(line) for line in importlib.import_module(COMMANDS[command][0]).EXAMPLE.strip().splitlines()]


def blocks(document: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def calls(line: str) -> Iterator[list[str]]:
    """The words of every call of llm in a shell's line."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return
    for stop in (i for i, word in enumerate(words) if re.fullmatch(r"(.*/)?llm", word)):
        if stop and words[stop - 1] not in ("|", "||", "&&", ";", "$"):
            continue
        end = next((i for i in range(stop, len(words)) if words[i] in ("|", "||", "&&", ";", ">", "<", "&", "2>")), len(words))
        yield words[stop + 1 : end]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_a_manual_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(COMMANDS[command][0])
    assert len(module.ABOUT.split()) > 20, f"llm {command}: ABOUT is too short to explain anything"
    assert len(examples(command)) >= 2 or command == "warmup"
    assert app.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if line.strip() not in examples(command)), shown
    assert all(f"  {line}\n" in shown for line in examples(command))
    headings = ["For every command:", "Examples:", "Exit codes:", "More:"]
    assert [line for line in shown.splitlines() if line in headings] == headings
    assert f"llm docs {command} " in shown
    assert all(re.search(rf"(?<!\d){code} {re.escape(meaning)}", " ".join(shown.split())) for code, meaning in errors.EXIT_CODES.items())
    assert all(read(topic) for topic in re.findall(r"\bllm docs ([a-z]+)\)", module.ABOUT))


def test_help_as_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for words, same in ((["help"], ["--help"]), (["help", "run"], ["run", "--help"])):
        assert app.main(words) == app.main(same) == 0
        shown = capsys.readouterr().out
        assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_are_possible(command: str) -> None:
    own = 0
    for line in examples(command):
        for words in calls(line.replace('"$(', "").replace(')"', "")):
            assert commands.read(words, Console()) is not None
            own += words[0] == command
    assert own >= 1


# Commands in the documents


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_command_lines_of_the_documents_are_possible(path: Path) -> None:
    """All that begin with llm in blocks of code; those with [..] or ... are patterns and not lines."""
    for block in blocks(path.read_text("utf-8"), r"\w*"):
        for line in block.splitlines():
            for words in calls(line.replace('"$(', "").replace(')"', "")):
                try:
                    with contextlib.suppress(typer.Exit):  # --help
                        commands.read([word for word in words if word != "..."], Console())
                except UsageError as error:
                    raise AssertionError(f"{path.name}: {line}: {error}") from error


def test_sections_of_the_documents_are_commands() -> None:
    assert sorted(re.findall(r"^## llm (.+)$", text("commands"), re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_the_documents_exist(command: str) -> None:
    """A row of a command's table has flags of that command, `llm NAME ...` those of NAME, other places those of any."""
    every = set().union(*(flags(name) for name in [*COMMANDS, None]))
    for line in section(command).splitlines():
        for code in (part for span in re.findall(r"`((?:-|llm )[^`]*)`", line) for part in span.split(" | ")):
            named = [name for name in re.findall(r"^llm ([a-z]+)", code) if name in COMMANDS]
            known = flags(named[0]) if named else flags(command) if line.startswith("| `-") and line.find(code) < 5 else every
            assert set(FLAG.findall(code)) <= known | flags(None), f"docs/commands.md, llm {command}: `{code}`"


def test_flags_of_the_shared_sections_exist() -> None:
    shared = "".join(part for part in re.split(r"^(?=## )", text("commands"), flags=re.MULTILINE) if not part.startswith("## llm "))
    every = set().union(*(flags(command) for command in [*COMMANDS, None]))
    for code in re.findall(r"`(-[^`\n]*)`", shared):
        assert set(FLAG.findall(code)) - {"-inf"} <= every, code


# Variables


def used() -> dict[str, set[str]]:
    """Variable -> files with a string of its name that is no docstring."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "doctor" / "around.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        loose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        asked = {
            node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args and "environ" in ast.unparse(node.func)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in loose:
                if VARIABLE.fullmatch(node.value) or node in asked:
                    found.setdefault(node.value, set()).add(path.name)
    return found


def test_variables_are_documented_and_known_to_the_doctor() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", text("environment"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    assert documented == set(VARIABLES)
    assert set(used()) <= documented, "a variable that the code reads is not in docs/environment.md"
    by_others = {"XDG_DATA_HOME", "XDG_CONFIG_HOME", "https_proxy", "no_proxy", "SSL_CERT_FILE", "LLMCLI_TEST_DATA", "VISUAL", "EDITOR"}
    assert documented - set(used()) == by_others, "docs/environment.md names a variable that nothing reads"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_documents_name_no_unknown_variable(path: Path) -> None:
    assert set(re.findall(rf"`({VARIABLE.pattern})=?[^`]*`", path.read_text("utf-8"))) <= set(VARIABLES)


# Exit codes


def test_every_exit_code_comes_from_somewhere() -> None:
    from_errors = {value.code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.LlmError)}
    source = (PACKAGE / "cli" / "app.py").read_text("utf-8")
    from_app = {int(code) for code in re.findall(r"return (\d+)", source)}
    assert from_errors | from_app == set(errors.EXIT_CODES)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_documents_name_no_other_exit_code(path: Path) -> None:
    for code in re.findall(r"(?:exit )?code (\d+)", path.read_text("utf-8")):
        assert int(code) in errors.EXIT_CODES, f"{path.name}: {code}"


# JSON


def objects(block: str) -> Iterator[dict[str, object]]:
    """The JSON objects of a block, each perhaps over several lines."""
    while block := block.strip():
        record, end = json.JSONDecoder().raw_decode(block)
        yield record
        block = block[end:]


def test_json_examples_are_valid() -> None:
    for path in DOCS:
        for block in blocks(path.read_text("utf-8"), "json"):
            assert all(record.get("schema", 1) == 1 for record in objects(block))


def test_every_json_answer_has_an_example() -> None:
    with_json = {f"llm {command} {flag}" for command in COMMANDS for flag in flags(command) & {"--json", "--jsonl"}}
    assert set(re.findall(r"^## (llm .+)$", text("json"), re.MULTILINE)) == with_json


def example(heading: str) -> list[dict[str, object]]:
    """The objects of the example below a heading of docs/json.md."""
    parts = re.split(r"^## ", text("json"), flags=re.MULTILINE)
    return [record for part in parts if part.startswith(f"{heading}\n") for record in objects(blocks(part, "json")[0])]


def keys(value: object) -> object:
    """The shape of JSON: names of fields, lists by their first entry."""
    if isinstance(value, dict):
        return {name: keys(inner) for name, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


COMMAND_LINES = {
    "llm run --json": ["run", "The cat", "-n", "1", "--temp", "0", "--json", "--probs", "1"],
    "llm run --jsonl": ["run", "The cat", "-n", "1", "--temp", "0", "--jsonl"],
    "llm next --json": ["next", "The cat", "-k", "1", "--json"],
    "llm score --json": ["score", "The cat", "--json"],
    "llm diff --json": ["diff", "-m", "demo", "-m", "demo", "The cat", "--json", "--worst", "1"],
    "llm eval --json": ["eval", "perplexity", str(ROOT / "LICENSE"), "--limit", "100", "--json"],
    "llm attend --json": ["attend", "The cat", "--json"],
    "llm lens --json": ["lens", "The cat", "-k", "1", "--json"],
    "llm tokenize --json": ["tokenize", "The cat", "--json"],
    "llm list --json": ["list", "--json"],
    "llm models --json": ["models", "--json"],
    "llm show --json": ["show", "demo", "--json"],
    "llm doctor --json": ["doctor", "--json"],
    "llm bench --json": ["bench", "--prompt", "8", "--gen", "2", "--repeat", "1", "--json"],
}


@pytest.mark.parametrize("heading", COMMAND_LINES)
def test_json_examples_have_the_fields_of_real_answers(heading: str) -> None:
    command = [sys.executable, "-m", "llmcli", *COMMAND_LINES[heading]]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
    assert [keys(json.loads(line)) for line in done.stdout.splitlines()] == [keys(record) for record in example(heading)]


# The documents as a command


def test_every_document_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(topics()) == {path.stem for path in ROOT.glob("docs/*.md")}
    for topic in topics():
        assert app.main(["docs", topic]) == 0
        assert capsys.readouterr().out.startswith(text(topic))
    assert app.main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{topic} +\w", listed, re.MULTILINE) for topic in topics())
    assert app.main(["docs", "comands"]) == 4
    assert "commands" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_section_of_a_command_can_be_read(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["docs", command]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(section(command)) and section(command).startswith(f"## llm {command}\n")
    assert command in topics() or shown == section(command)
    assert "\n## " not in section(command)
