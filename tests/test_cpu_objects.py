"""Kernels' object code: compiled once, kept, checked, shared by processes."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli.backends.cpu import build, choice, objects, warmup
from llmcli.errors import InternalError
from llmcli.models import decoder
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Rope, Spec

SMALL = (("select.rows", ()), ("checksum.sum", ()), ("position.add", ()), ("elementwise.add", ()))
"""Kernels that compile quickly."""


SCRIPT = """
import sys, warnings
warnings.simplefilter("always")
warnings.showwarning = lambda message, *rest, **more: print("warning:", message)
from llmcli.backends.cpu import build, objects, run
started = []
compiled = build.compiled
def counted(symbols):
    started.extend(symbols)
    return compiled(symbols)
build.compiled = counted
objects.load([(name, ()) for name in sys.argv[1:]])
print("compiled", len(started), "numba", "numba" in sys.modules)
"""


def start_loading(folder: Path, *names: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "LLMCLI_KERNELS": str(folder)})


def loading(folder: Path, *names: str) -> list[str]:
    """What a process prints that loads these kernels from a folder."""
    process = start_loading(folder, *names)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.splitlines()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the objects of SMALL, compiled by four processes at once."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    names = [name for name, _ in SMALL]
    processes = [start_loading(folder, *names) for _ in range(4)]
    outputs = [process.communicate(timeout=100)[0].split() for process in processes]
    assert sorted(outputs) == [["compiled", "0", "numba", "False"]] * 3 + [["compiled", "4", "numba", "False"]]
    return folder


def test_objects_are_whole_and_private(kept: Path) -> None:
    files = [path for path in (kept / objects.maker()).iterdir() if path.name != ".lock"]
    assert sorted(path.name.partition("-")[0] for path in files) == sorted(name for name, _ in SMALL)
    assert kept.stat().st_mode & 0o777 == 0o700
    assert loading(kept, *(name for name, _ in SMALL)) == ["compiled 0 numba False"]


def test_damaged_objects_are_compiled_again(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(kept, folder)
    cut, flipped, empty, swapped = sorted(path for path in (folder / objects.maker()).iterdir() if path.name != ".lock")
    swapped.write_bytes(flipped.read_bytes())
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 16
    flipped.write_bytes(data)
    empty.write_bytes(b"")
    *warnings, last = loading(folder, *(name for name, _ in SMALL))
    assert len(warnings) == 4 and all("is damaged; compiling it again" in line for line in warnings)
    assert last == "compiled 4 numba False"
    assert loading(folder, *(name for name, _ in SMALL)) == ["compiled 0 numba False"]
    for path in (kept / objects.maker()).iterdir():
        assert (folder / objects.maker() / path.name).read_bytes() == path.read_bytes(), "the same source gives the same object"


def test_a_folder_that_others_can_write_is_not_used(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(kept, folder)
    folder.chmod(0o777)
    warning, last = loading(folder, "select.rows")
    assert "others could write there" in warning and last == "compiled 1 numba False"


def test_a_sub_folder_that_others_can_write_is_not_used(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(kept, folder)
    (folder / objects.maker()).chmod(0o777)
    warning, last = loading(folder, "select.rows")
    assert "others could write there" in warning and last == "compiled 1 numba False"


def test_a_folder_of_somebody_else_is_not_used(kept: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder away")
    for number, place in enumerate((".", objects.maker())):
        folder = tmp_path / f"kernels-{number}"
        shutil.copytree(kept, folder)
        os.chown(folder / place, 54321, 54321)
        warning, last = loading(folder, "select.rows")
        assert "others could write there" in warning and last == "compiled 1 numba False"


def test_what_other_versions_made_is_stale(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(kept, folder)
    monkeypatch.setenv("LLMCLI_KERNELS", str(folder))
    assert objects.stale() == []
    old = folder / ("0" * len(objects.maker()))
    old.mkdir()
    flat = folder / f"attention.shared-64-f16-3-{'a' * 32}.o"
    for path in (flat, old / flat.name, folder / "notes.o", folder / "holiday.jpg"):
        path.write_bytes(b"x")
    (folder / "photos").mkdir()
    (folder / ("1" * len(objects.maker()))).symlink_to(tmp_path)
    assert objects.stale() == [old, flat]
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "link"))
    assert objects.stale() == []


def test_without_a_folder_kernels_are_compiled_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    warning, last = loading(tmp_path / "file" / "kernels", "select.rows")
    assert "no folder for compiled kernels" in warning and last == "compiled 1 numba False"


def test_what_decides_the_code_decides_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = objects.digest(("linear.int8", (8,)))
    assert plain != objects.digest(("linear.int8", (4,)))
    code = "from llmcli.backends.cpu import objects; print(objects.digest(('linear.int8', (8,))))"
    for name, value in {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}.items():
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() != plain


def test_every_source_of_a_kernel_counts() -> None:
    folder = Path(objects.__file__).parent
    home = "llmcli.backends.cpu"
    for path in (folder / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("llmcli"):
                for name in node.names:
                    imported = f"{node.module}.{name.name}".removeprefix(f"{home}.").partition(".")[0]
                    assert imported == "kernels" or f"{imported}.py" in objects.SHARED_SOURCES, f"{path.name} imports {imported}"


def test_a_kernel_that_fails_is_named() -> None:
    with pytest.raises(InternalError, match=r"kernel linear\.int8 \(3,\) does not compile: KeyError"):
        list(build.compiled({("linear.int8", (3,)): "symbol"}))


def test_a_kernel_may_not_call_out() -> None:
    import math

    from llmcli.backends.cpu.kernels import emit
    from llmcli.backends.cpu.kernels.vectors import as_f64, load_i64, store_f64

    def kernel(args, chunk, thread):  # type: ignore[no-untyped-def]
        store_f64(args, math.cos(as_f64(load_i64(args))))

    with pytest.raises(RuntimeError, match="llm_cosine calls cos"):
        emit.image(kernel, "llm_cosine")


def test_warmup_has_what_a_llama_needs() -> None:
    known = set(warmup._keys())
    for head_size, group in ((64, 3), (128, 4)):
        attention = Attention(heads=group, kv_heads=1, head_size=head_size, scale=1.0)
        layers = (Layer(attention, Mlp(64), rope=Rope(head_size)),)
        plan = decoder.plan(Spec(vocab=403, hidden=64, context=256, norm=Norm(), layers=layers, tied=False), 256)
        for format in ("int8", "int4"):
            stored = {"vector": "vector", "embedding": "int8", "head": "int8", "matrix": format}
            of = {name: stored[weight.kind] for name, weight in plan.weights.items()}
            assert set(choice.kernels(choice.operations(plan, of), of, "int16")) <= known
    for name, _ in known:
        module, short = name.split(".")
        assert short in importlib.import_module(f"llmcli.backends.cpu.kernels.{module}").KERNELS
