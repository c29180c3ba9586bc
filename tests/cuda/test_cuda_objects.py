"""Compiled kernels of the GPU: kept once, checked, told apart; what compiles them, where numba-cuda is installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcli.backends import build
from llmcli.backends.cuda import objects
from llmcli.backends.cuda.kernels import elementwise, norm, select
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.errors import InternalError

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")
HERE = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="compiles with numba-cuda: pip install 'llmcli[cuda]'")

CAPABILITY = (9, 0)
OPERAND = "f4 int int"


def keys() -> list[objects.Key]:
    multiplied = elementwise.KERNELS["silu_multiply"]
    types = f"i4 int {OPERAND} {OPERAND} {OPERAND} int float"
    return [(select.select.reference, f"i4 {OPERAND} {OPERAND} int"), (multiplied.reference, types)]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names of kernels that a stand-in for the compiler was asked for; they are kept below tmp_path."""
    asked: list[Any] = []

    def stub(module: str, requests: Mapping[Any, tuple[str, object]], processes: int) -> Iterator[tuple[Any, bytes]]:
        for key, (name, request) in requests.items():
            asked.append(name)
            yield key, repr(request).encode()

    monkeypatch.setattr(build, "compiled", stub)
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "kernels"))
    return asked


def files(folder: Path) -> list[Path]:
    return sorted((folder / "kernels" / objects.maker()).glob("*.cubin"))


def test_names() -> None:
    assert [objects.name(key) for key in keys()] == ["select.select", "elementwise.rows-elementwise.then_multiply-elementwise.silu"]
    assert norm.ROWS["rms"].reference != norm.ROWS["layer"].reference


def test_kernels_are_compiled_once(compiled: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    told: list[tuple[str, int, int]] = []
    before = objects.compile_seconds()
    first = objects.load(keys(), CAPABILITY, said.append, lambda *step: told.append(step))
    assert sorted(compiled) == sorted(objects.name(key) for key in keys())
    assert said == ["compiling 2 kernels for the GPU; this happens once and takes some seconds"]
    assert [step[1:] for step in told] == [(1, 2), (2, 2)]
    took = objects.compile_seconds()
    assert objects.load(keys(), CAPABILITY, pytest.fail) == first and len(compiled) == 2
    assert before < took == objects.compile_seconds()
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700 and len(files(tmp_path)) == 2
    assert objects.load(keys()[:1], (8, 0)) != objects.load(keys()[:1], CAPABILITY), "a GPU's code is no other's"


def test_damaged_kernels_are_compiled_again(compiled: list[Any], tmp_path: Path) -> None:
    whole = objects.load(keys(), CAPABILITY)
    first, second = files(tmp_path)
    for contents in (first.read_bytes()[:-1], second.read_bytes(), b""):
        first.write_bytes(contents)
        compiled.clear()
        said: list[str] = []
        assert objects.load(keys(), CAPABILITY, said.append) == whole and len(compiled) == 1
        assert "is damaged; compiling it again" in said[0]


def test_a_folder_that_others_can_write_is_not_used(compiled: list[Any], tmp_path: Path) -> None:
    objects.load(keys(), CAPABILITY)
    for folder in (tmp_path / "kernels", tmp_path / "kernels" / objects.maker()):
        folder.chmod(0o777)
        compiled.clear()
        said: list[str] = []
        objects.load(keys(), CAPABILITY, said.append)
        assert len(compiled) == 2 and "others could write there" in said[0]
        folder.chmod(0o700)


def test_what_other_versions_made_is_stale(compiled: list[Any], tmp_path: Path) -> None:
    objects.load(keys(), CAPABILITY)
    assert objects.stale() == []
    old = tmp_path / "kernels" / ("cuda-" + "0" * 16)
    old.mkdir()
    (tmp_path / "kernels" / "cuda-pictures").mkdir()
    (tmp_path / "kernels" / ("cuda-" + "1" * 16)).symlink_to(tmp_path)
    assert objects.stale() == [old]


def test_every_source_of_a_kernel_counts() -> None:
    """Others that kernels' modules import make no code: device.py and launch.py; formats and plans, whose numbers are arguments; errors."""
    home, arguments = Path(objects.__file__).parent, {"device", "launch", "llmcli.formats", "llmcli.plan", "llmcli.errors"}
    counted = {Path(source).stem for source in objects.SOURCES}
    for path in (home / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("llmcli"):
                for name in node.names:
                    imported = f"{node.module}.{name.name}".removeprefix("llmcli.backends.cuda.").removeprefix("kernels.")
                    short = imported.removeprefix("llmcli.").partition(".")[0]
                    inside = str(node.module).startswith("llmcli.backends.cuda.kernels") or imported == "kernels"
                    assert inside or short in counted or imported.startswith(tuple(arguments)), f"{path.name} imports {imported}"


def test_starting_kernels_imports_no_compiler() -> None:
    code = "import sys\nfrom llmcli.backends.cuda import run\nprint(sorted({'numba', 'numba_cuda', 'cuda', 'llvmlite'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


@HERE
def test_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels: one entry of a known name, and parameters of 8 bytes each, as driver.packed makes them."""
    from compiling import ptx

    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "kernels"))
    for key, cubin in objects.load(keys(), CAPABILITY).items():
        assert cubin[:4] == b"\x7fELF" and b"\0" + objects.ENTRY + b"\0" in cubin
        kernel = next(k for k in (select.select, elementwise.KERNELS["silu_multiply"]) if k.reference == key[0])
        entry = ptx(kernel, key[1], CAPABILITY).partition(".entry")[2].partition(")")[0]
        kinds = key[1].split()
        words = sum(1 if kind in ("int", "float") else 7 for kind in kinds)
        assert entry.count(".param .u64") + entry.count(".param .f64") == entry.count(".param") == words


@HERE
def test_gpus_that_the_compiler_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9.5 runs 9.0's code; what no code runs on gets the assembly, which the driver compiles."""
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "kernels"))
    (known,) = objects.load(keys()[:1], (9, 0)).values()
    (close,) = objects.load(keys()[:1], (9, 5)).values()
    (far,) = objects.load(keys()[:1], (99, 0)).values()
    flags = slice(48, 52)  # of an ELF header: the GPU's architecture
    assert close[:4] == known[:4] == b"\x7fELF" and close[flags] == known[flags]
    assert b".entry " + objects.ENTRY in far and b".target sm_" in far and far.endswith(b"\0")


@HERE
def test_a_kernel_that_does_not_compile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "kernels"))
    with pytest.raises(InternalError, match=r"kernel select\.nothing does not compile: AttributeError"):
        objects.load([(("select.nothing", None), "i4")], CAPABILITY)
