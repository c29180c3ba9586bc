"""Who may import whom. The table is docs/architecture.md's; here it is checked, lazy imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmcli

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(llmcli.__file__).parent

MACHINE = {"errors", "places", "memory", "interrupt", "settings"}
"""What knows this machine and no model, and the errors."""

# Module or folder (the longest prefix counts) -> what of ours it may import. A folder may always import from itself.
OURS: dict[str, set[str]] = {
    "errors": set(),
    "ops": set(),
    "places": {"errors"},
    "memory": {"errors"},
    "interrupt": {"errors"},
    "settings": {"errors", "places"},
    "plan": {"errors", "ops"},
    "kv": {"errors", "plan"},
    "formats": {"errors"},
    "models": {"errors", "ops", "plan"},
    "weights": MACHINE | {"plan", "formats"},
    "text": {"errors"},
    "sampling": {"errors"},
    "backends.backend": {"errors", "ops", "plan", "formats", "kv"},
    "backends.fuse": {"plan"},
    "backends.kept": set(),
    "backends.build": {"errors"},
    "backends.reference": MACHINE | {"ops", "plan", "formats", "kv", "backends.backend"},
    "backends.cpu": MACHINE | {"ops", "plan", "formats", "kv", "backends.backend", "backends.fuse", "backends.kept", "backends.build"},
    "backends.cuda": MACHINE | {"ops", "plan", "formats", "kv", "backends.backend", "backends.fuse", "backends.kept", "backends.build"},
    "estimate": {"errors", "memory", "plan", "kv"},
    "offload": {"errors", "estimate", "plan", "kv", "formats", "backends.backend", "backends.cuda.device"},
    "engine": MACHINE | {"estimate", "plan", "kv", "formats", "models", "weights", "text", "backends", "offload"},
    "warmup": {"errors", "places", "engine", "backends", "models", "weights"},
    "originals": {"errors", "engine", "plan", "models", "weights", "text"},
    "acquire": MACHINE | {"originals", "engine", "estimate", "plan", "models", "weights", "text"},
    "library": MACHINE
    | {"originals", "engine", "estimate", "plan", "models", "weights", "offload", "backends.cpu.objects", "backends.cuda.objects"},
    "doctor": MACHINE | {"engine", "estimate", "weights", "backends.cpu", "backends.cuda.device"},
    "past": {"errors", "interrupt", "engine", "kv", "sampling", "backends.backend"},
    "generate": {"errors", "engine", "past", "sampling", "text"},
    "scoring": {"errors", "engine", "past", "backends.backend"},
    "choices": {"errors", "engine", "past", "scoring"},
    "intervals": set(),
    "evaluation": {"errors", "engine", "past", "scoring", "choices"},
    "compare": {"errors", "engine", "past", "scoring", "intervals"},
    "attention": {"errors", "engine", "past", "plan"},
    "lens": {"errors", "engine", "past", "backends.backend"},
    "pages": {"errors", "text"},
    "responses": {"errors", "engine", "past", "generate", "choices", "text"},
    "tree": {"errors", "engine", "past", "generate", "sampling"},
    "api": {"errors", "engine", "past", "generate", "responses", "scoring", "choices", "text"},
    "": {"api"},
    "cost": {"errors", "plan", "kv", "formats"},
    "benchmark": MACHINE | {"engine", "estimate", "cost", "plan", "kv", "formats", "models", "weights", "backends"},
    "chat": {"errors", "engine", "past", "generate", "sampling", "text"},
    "saved": {"errors", "chat", "text", "weights.atomic"},
    "history": {"weights.atomic"},
    "cli": MACHINE
    | {
        "engine",
        "acquire",
        "library",
        "warmup",
        "doctor",
        "benchmark",
        "generate",
        "scoring",
        "choices",
        "intervals",
        "evaluation",
        "compare",
        "attention",
        "lens",
        "past",
        "pages",
        "chat",
        "saved",
        "history",
        "responses",
        "tree",
        "sampling.settings",
        "text",
    }
    | {"weights.present", "weights.aliases"},
    "__main__": {"cli"},
}

# Packages of others -> where they may be imported. What is not listed may not be imported at all.
THEIRS: dict[str, set[str]] = {
    "rich": {"cli"},
    "typer": {"cli"},
    "prompt_toolkit": {"cli.chat_editor"},
    "textual": {"cli.explore_app"},
    "platformdirs": {"places"},
    "jinja2": {"text"},
    "tokenizers": {"text"},
    "gguf": {"weights"},
    "numpy": {
        "kv",
        "formats",
        "weights",
        "text",
        "sampling",
        "backends",
        "offload",
        "engine",
        "past",
        "generate",
        "scoring",
        "attention",
        "lens",
        "compare",
        "cost",
        "benchmark",
    },
    "llvmlite": {"backends.cpu", "backends.cuda.kernels.ptx"},
    "numba": {"backends.cpu.kernels", "backends.cpu.compile", "backends.cuda.kernels", "backends.cuda.compile", "backends.cuda.memory"},
    "cuda": {"backends.cuda.compile"},
}


def modules() -> dict[str, Path]:
    """Name without the package -> file; a folder's __init__ has the folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it the import stands; 'llmcli' itself has the version and names of its api."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is a relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole.removeprefix("llmcli.") in MODULES else str(node.module)


def within(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def test_every_module_is_in_the_table() -> None:
    unknown = [name for name in MODULES if name and not any(within(name, key) or within(key, name) for key in OURS)]
    assert not unknown, f"add {unknown} to the table of import directions"
    stale = [key for key in OURS if not any(within(name, key) for name in MODULES)]
    assert not stale, f"the table of import directions lists {stale}, which do not exist"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_of_ours(name: str) -> None:
    keys = [key for key in OURS if within(name, key)]
    home = max(keys, key=len) if keys else None
    allowed = OURS[home] if home is not None else set()
    for imported in imports(MODULES[name]):
        if not within(imported, "llmcli"):
            continue
        target = imported.removeprefix("llmcli").removeprefix(".")
        inside = home is not None and within(target, home)
        assert target == "" or inside or any(within(target, key) for key in allowed), f"llmcli.{name} may not import {imported}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_of_others(name: str) -> None:
    for imported in imports(MODULES[name]):
        top = imported.partition(".")[0]
        if top == "llmcli" or top in sys.stdlib_module_names:
            continue
        assert any(within(name, place) for place in THEIRS.get(top, ())), f"llmcli.{name} may not import {imported}"


def test_kernels_are_imported_by_their_compiler_only() -> None:
    """Numba takes longer to import than the demo model takes to answer."""
    kernels = "backends.cpu.kernels"
    for name, path in MODULES.items():
        if not within(name, kernels) and name != "backends.cpu.compile":
            for imported in imports(path):
                assert not within(imported.removeprefix("llmcli."), kernels), f"llmcli.{name} imports {imported}"


def test_one_file_opens_connections() -> None:
    """What goes over the network, and where to, is then to be read in one place."""
    network = {"socket", "ssl", "http", "urllib.request", "urllib.error", "ftplib", "asyncio"}
    found = {(name, imported) for name, path in MODULES.items() for imported in imports(path) if any(within(imported, n) for n in network)}
    found.remove(("cli.explore_app", "asyncio"))  # Textual runs on it, and a key waits for another there
    assert {name for name, _ in found} == {"weights.hub"}


@pytest.mark.parametrize("package", ["pickle", "marshal", "shelve"])
def test_nothing_unpickles(package: str) -> None:
    """Such files run code, and ours come from strangers."""
    for name, path in MODULES.items():
        assert package not in {imported.partition(".")[0] for imported in imports(path)}, f"llmcli.{name} imports {package}"


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, llmcli; print(sorted({'numpy', 'numba', 'llvmlite', 'tokenizers', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_one_copy_of_the_package_is_tested(tmp_path: Path) -> None:
    """Commands that tests start must run the code that tests import: not half a checkout and half an installed package."""
    code = "import llmcli; print(llmcli.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert Path(done.stdout.strip()) == Path(llmcli.__file__)
