"""House rules as programs: every list of the code agrees with the other lists of the code and with the docs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmcli
from llmcli import errors
from llmcli.backends import backend
from llmcli.cli import commands
from llmcli.cli.app import COMMANDS, OVERVIEW
from llmcli.cli.console import Console
from llmcli.formats import format as formats
from llmcli.models import architectures, decoder
from llmcli.models.names import TRANSFORMS, Source
from llmcli.ops import ACTIVATIONS, OPERATIONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(llmcli.__file__).parent
DOCS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
MOST_LINES = 400
ARCHITECTURES = {module.__name__.rpartition(".")[2]: module for module in architectures.every()}  # type: ignore[attr-defined]


FAMILIES = (PACKAGE / "models" / "arch", PACKAGE / "models" / "gguf")
"""Folders with a file for each family of models."""


def sources(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string of a file that is no docstring or comment."""
    tree = ast.parse(path.read_text("utf-8"))
    loose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in loose:
            yield node.lineno, node.value


def section(document: str, heading: str) -> str:
    """The text below a heading, up to the next heading of its level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", document, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    rest = document[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


# Files


def test_files_are_short() -> None:
    counts = {str(path): len(path.read_text("utf-8").splitlines()) for path in sources(PACKAGE, ROOT / "tests")}
    long = {path: count for path, count in counts.items() if count > MOST_LINES}
    assert not long, f"files of more than {MOST_LINES} lines: {long}"


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in sources(PACKAGE) if (text := path.read_text("utf-8")) and not ast.get_docstring(ast.parse(text))]
    assert not silent, f"modules without a docstring: {silent}"


def test_no_file_names_a_machine() -> None:
    """Paths of the machine that a file was written on help nobody."""
    pattern = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|mnt)/\w")
    files = [*sources(PACKAGE, ROOT / "tests", ROOT / "tools", ROOT / "benchmarks"), *DOCS, *ROOT.glob("*.toml"), *ROOT.glob("scripts/*")]
    named = [f"{path}: {found[0]}" for path in files if path != Path(__file__) and (found := pattern.search(path.read_text("utf-8")))]
    assert not named


# Architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_file_is_complete(name: str) -> None:
    module = ARCHITECTURES[name]
    assert module.__doc__
    assert module.TYPES and all(isinstance(x, str) for pair in module.TYPES.items() for x in pair)
    assert list(inspect.signature(module.spec).parameters) == ["cfg"]
    assert isinstance(module.PREFIX, str) and isinstance(module.IGNORED, tuple)
    assert all(isinstance(source, Source) and source.transform in TRANSFORMS for source in module.NAMES.values())
    assert module.TINY, "a tiny config.json is what the tests compare with the original implementation"
    for variant, config in module.TINY.items():
        assert config["model_type"] in module.TYPES
        assert (ROOT / "tests" / "fixtures" / "archs" / variant / "golden.npz").is_file(), f"run tools/make_golden.py {variant}"


def test_no_architecture_claims_the_type_of_another() -> None:
    types = [kind for module in ARCHITECTURES.values() for kind in module.TYPES]
    assert len(types) == len(set(types))


def test_docs_say_which_backend_runs_an_architecture() -> None:
    """docs/models.md: a row has the class, then yes or no for cpu and reference."""
    document = (ROOT / "docs" / "models.md").read_text("utf-8")
    table = re.findall(r"^\|[^|]+\| `(\w+)` \| (yes|no) \| (yes|no) \|", document, re.MULTILINE)
    assert sorted(name for name, *_ in table) == architectures.supported()
    runs = {}
    for module in ARCHITECTURES.values():
        specs = [architectures.describe(config)[0] for config in module.TINY.values()]
        kinds = {op.kind for spec in specs for op in decoder.plan(spec, 16).ops}
        able = ["no" if any(backend.get(name).supports(kind, "") for kind in kinds) else "yes" for name in ("cpu", "reference")]
        runs |= dict.fromkeys(module.TYPES.values(), able)
    assert {name: able for name, *able in table} == runs


def test_no_code_asks_for_an_architecture_by_name() -> None:
    """What differs between models is a field of the spec: then a new family needs no change anywhere else."""
    names = {name.lower() for module in ARCHITECTURES.values() for pair in module.TYPES.items() for name in pair} | set(ARCHITECTURES)
    asked = [
        f"{path}:{line}: {value!r}"
        for path in sources(PACKAGE)
        if path.parent not in FAMILIES
        if path != PACKAGE / "text" / "gguf.py"  # GGUF calls its tokenizers by the names of models
        for line, value in strings(path)
        if value.lower() in names
    ]
    assert not asked


def test_fixtures_belong_to_an_architecture() -> None:
    variants = {variant for module in ARCHITECTURES.values() for variant in module.TINY}
    assert {path.name for path in (ROOT / "tests" / "fixtures" / "archs").iterdir()} == variants


# Operations and formats


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_reference_backend_has_every_operation(op: str) -> None:
    assert backend.get("reference").supports(op, "") == ""


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_cpu_backend_has_an_operation_or_says_why_not(op: str) -> None:
    reason = backend.get("cpu").supports(op, "")
    assert reason == "" or len(reason) > 10


def test_the_reference_backend_has_every_activation() -> None:
    import numpy as np

    from llmcli.backends.reference.elementwise import activation

    x = np.linspace(-3, 3, 7, dtype=np.float32)[None]
    for kind in ACTIVATIONS:
        assert np.isfinite(activation(x, kind=kind)).all()


@pytest.mark.parametrize("name", formats.names())
def test_a_format_file_is_complete(name: str) -> None:
    module = formats.get(name)
    assert name == module.FORMAT.name
    assert module.FORMAT.activations in ("int8", "f32")
    assert len(module.FORMAT.codes) == (16 if module.FORMAT.bits == 4 else 0)
    assert module.size(17, 33) % 64 == 0


def test_docs_describe_every_format() -> None:
    table = (ROOT / "docs" / "formats.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| [\d.]+ \|", table, re.MULTILINE)) == set(formats.names())


# Commands


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_help_and_a_section_in_the_docs(command: str) -> None:
    line = COMMANDS[command][1]
    assert line[0].isupper() and not line.endswith(".")
    text = section((ROOT / "docs" / "commands.md").read_text("utf-8"), f"llm {command}")
    for parameter in commands.command(command, Console()).params:
        assert parameter.help, f"{parameter.name} has no help"
        for flag in parameter.opts if parameter.param_type_name == "option" else ():
            assert re.search(rf"{re.escape(flag)}(?![\w-])", text + shared()), f"docs/commands.md: {flag} is missing at llm {command}"


def shared() -> str:
    """What docs/commands.md says about options of several commands."""
    document = (ROOT / "docs" / "commands.md").read_text("utf-8")
    return "".join(part for part in re.split(r"^(?=## )", document, flags=re.MULTILINE) if not part.startswith("## llm "))


def test_the_overview_fits_a_terminal() -> None:
    text = OVERVIEW.format(commands="\n".join(f"  {name:<21} {line}" for name, (_, line) in COMMANDS.items()))
    assert max(map(len, text.splitlines())) <= 80


# Errors


def tree() -> Iterator[type[errors.LlmError]]:
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.LlmError):
            yield value


def test_every_error_has_an_exit_code_that_is_listed() -> None:
    for kind in tree():
        assert kind.code in errors.EXIT_CODES, kind
        assert not kind.todo.endswith("."), kind


def test_the_drawing_of_the_errors_is_true() -> None:
    """The drawing at the head of errors.py: depth by indentation, class, code."""
    drawn: list[tuple[str, str, int]] = []
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^([ │├└─]*)(\w+) +(\d+)\b", line):
            depth = len(found[1])
            parent = next((above[d] for d in sorted(above, reverse=True) if d < depth), "Exception")
            above = {d: name for d, name in above.items() if d < depth} | {depth: found[2]}
            drawn.append((found[2], parent, int(found[3])))
    assert sorted(drawn) == sorted((kind.__name__, kind.__base__.__name__ if kind.__base__ else "", kind.code) for kind in tree())


def test_docs_list_the_exit_codes() -> None:
    text = section((ROOT / "docs" / "commands.md").read_text("utf-8"), "Exit codes")
    table = {int(code): meaning.strip() for code, meaning in re.findall(r"^\| *(\d+) *\| *([^|]+?) *\|", text, re.MULTILINE)}
    assert table == errors.EXIT_CODES


# Documents


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_documents_name_what_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for name in re.findall(r"`((?:llmcli|tests|tools|docs|scripts|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or (PACKAGE.parent / name).exists(), f"{path.name} names {name}"


def test_the_architecture_document_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"[\w/]+\.py", text))
    for path in sources(PACKAGE):
        whole = path.relative_to(PACKAGE).as_posix()
        if path.name != "__init__.py" and path.parent not in FAMILIES:
            assert whole in named, f"docs/architecture.md leaves out {whole}"
    for name in named:
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), f"docs/architecture.md names {name}, which does not exist"


def test_documents_keep_to_the_line_length() -> None:
    for path in DOCS:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 160 or line.startswith("|"), f"{path.name}:{number} is {len(line)} characters long"


# Package


def test_records_are_frozen() -> None:
    """A spec, a plan and a format are data that several places share."""
    from llmcli import plan
    from llmcli.models import names, spec

    for module in (plan, spec, names, formats):
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and isinstance(value, type):
                assert value.__dataclass_params__.frozen, value  # type: ignore[attr-defined]


def test_models_toml_is_in_order() -> None:
    models = tomllib.loads((ROOT / "models.toml").read_text("utf-8"))
    assert "demo" in models
    allowed = {"repository", "parameters", "licence", "context", "quantization", "gated", "about"}
    for name, entry in models.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
        assert set(entry) <= allowed and {"parameters", "context", "quantization", "gated", "about"} <= set(entry)
        assert entry["quantization"] in ("int4", "int8", "none")


def test_the_version_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(llmcli.__version__)})\]", text, re.MULTILINE)


def test_the_demo_comes_with_its_credits() -> None:
    """CC BY asks for the authors' names wherever the model goes."""
    rows = (PACKAGE / "demo" / "CREDITS.tsv").read_text("utf-8").splitlines()
    assert rows[0] == "title\tauthor" and len(rows) == 317
    assert all(len(row.split("\t")) == 2 and all(row.split("\t")) for row in rows)
