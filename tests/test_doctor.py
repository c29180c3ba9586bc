"""`llm doctor`: every state of every check that a test can bring about, what it never does, and what it never shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcli import memory, places
from llmcli.backends.cuda import device
from llmcli.cli.app import main
from llmcli.doctor import around, checks, machine
from llmcli.doctor.default import default
from llmcli.doctor.rows import Row
from llmcli.errors import CorruptFile
from test_cuda_device import Library


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, and a default model that is looked up again."""
    for name in (*around.VARIABLES, "LC_ALL"):
        if name not in ("TERM", "LLMCLI_TEST_DATA", "LLMCLI_KERNELS"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMCLI_HOME", str(tmp_path / "home"))
    default.cache_clear()
    yield tmp_path / "home"
    default.cache_clear()


def rows(name: str) -> list[Row]:
    default.cache_clear()
    return [row for row in checks.examine() if row.name == name]


def one(name: str, state: str) -> Row:
    """The only row of this name that is not ok, or the first of all if all are."""
    found = rows(name)
    odd = [row for row in found if row.state != "ok"] or found
    assert odd[0].state == state, found
    assert state == "ok" or odd[0].fix or name == "cpu", f"{odd[0]} says nothing to do"
    return odd[0]


def test_a_new_home_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"schema", "llm", "works", "checks"} and report["works"] is True
    assert all(set(row) == {"name", "state", "text", "fix"} for row in report["checks"])
    assert {"packages", "command", "cpu", "threads", "memory", "gpu", "models", "default", "kernels", "folder", "disk", "network"} <= {
        row["name"] for row in report["checks"]
    }
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(row["text"] in text for row in report["checks"] if row["name"] != "disk") and "\x1b" not in text


def test_it_is_quick_writes_nothing_and_imports_no_numba(home: Path) -> None:
    code = (
        "import sys; from llmcli.cli.app import main; main(['doctor']);"
        "sys.exit('numba' in sys.modules or 'llmcli.backends.cpu.build' in sys.modules)"
    )
    settings = {name: value for name, value in os.environ.items() if name != "LLMCLI_KERNELS"}
    seconds = []
    for _ in range(5):  # computing, not waiting; and the quickest, because busy neighbours slow a core down
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, timeout=60)
        after = os.times()
        assert done.returncode == 0, done
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert not home.exists()
    assert min(seconds) < 1  # 0.4 on an idle machine


def test_a_default_model_that_is_not_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLMCLI_MODEL", "elsewhere")
    assert "unset LLMCLI_MODEL" in one("default", "problem").fix
    assert main(["doctor", "-q"]) == 10
    captured = capsys.readouterr()
    assert captured.err.startswith("llm: error: 1 problem: llm run cannot work") and "-> unset LLMCLI_MODEL" in captured.out


def test_settings_that_cannot_be_read(home: Path) -> None:
    places.config().mkdir(parents=True)
    (places.config() / "models.toml").write_text("[[[")
    assert "models.toml" in one("settings", "note").text
    (places.config() / "config.toml").write_text("model = 3")
    assert "config.toml" in one("settings", "problem").text


def test_a_damaged_default_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places.models().mkdir(parents=True)
    (places.models() / "bad-int4.safetensors").write_bytes(b"no model")
    assert "llm rm bad:int4" in one("models", "note").fix
    monkeypatch.setenv("LLMCLI_MODEL", "bad")
    assert one("default", "problem").fix == CorruptFile.todo


def test_folders_that_others_can_change(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_KERNELS", str(home / "kernels"))
    for folder in (places.models(), places.kernels()):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    assert [row.fix for row in rows("folder") if row.state == "note"] == [f"chmod go-w {places.models()}", f"chmod go-w {places.kernels()}"]
    assert "others could write" in one("kernels", "note").text
    places.kernels().chmod(0o700)
    assert "0 of the 18" in one("kernels", "note").text and one("kernels", "note").fix == "llm warmup"


def test_a_home_that_is_a_file(home: Path) -> None:
    home.write_text("")
    assert "LLMCLI_HOME" in one("folder", "note").fix


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limits", lambda: {"free memory": 8 << 30, "cgroup limit": 1 << 20})
    assert "1.0 MiB left by cgroup limit" in one("memory", "problem").text
    monkeypatch.setattr(memory, "limits", dict)
    found = rows("memory")
    assert [row.state for row in found] == ["note"]


def test_an_nvidia_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(machine, "LIBRARIES", (str(tmp_path),))
    assert "no NVIDIA driver" in one("gpu", "ok").text
    card = tmp_path / "nvidia" / "gpus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   52\n")
    (tmp_path / "nvidia" / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1.2  Fri\nGCC version:\n")
    missing = one("gpu", "note")
    assert missing.text.startswith("NVIDIA H200, driver 570.1.2; not used: no NVIDIA driver: libcuda.so.1") and missing.fix.startswith(
        "Install"
    )


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.SIMULATOR, raising=False)
    monkeypatch.setattr(device, "driver", lambda: device.Driver(Library((9, 0), version=12080)))
    monkeypatch.setattr(device, "compiler", lambda: 12)
    assert one("gpu", "ok").text.startswith("Stub 0 (8.0 GiB, compute capability 9.0), driver for CUDA 12.8, numba-cuda for CUDA 12; large")
    monkeypatch.setattr(device, "compiler", lambda: None)
    assert one("gpu", "note").fix.startswith("pip install 'llmcli[cuda]'")


def test_another_program_called_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, text in ((ours, "from llmcli.cli.app import main"), (theirs, "from llm.cli import cli")):
        folder.mkdir()
        (folder / "llm").write_text(f"#!/usr/bin/python3\n{text}\n")
        (folder / "llm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{theirs}:{ours}")
    found = one("command", "note")
    assert str(theirs / "llm") in found.text and str(ours) in found.fix
    monkeypatch.setenv("PATH", f"{ours}:{theirs}")
    assert "comes later" in one("command", "ok").text
    monkeypatch.setenv("PATH", str(ours))
    assert one("command", "ok").text == f"llm is {ours / 'llm'}"
    monkeypatch.setenv("PATH", "")
    assert "no llm in PATH" in one("command", "note").text


def test_the_package_of_that_program_in_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm-0.27.dist-info").mkdir()
    (tmp_path / "llm-0.27.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: llm\nVersion: 0.27\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the package llm 0.27" in one("command", "note").text


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:s3cret@hub.example/")
    monkeypatch.setenv("https_proxy", "http://me:s3cret@proxy:3128")
    for words in (["doctor"], ["doctor", "--json"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "s3cret" not in shown
        assert "HF_TOKEN=(set, not shown)" in shown and "hub.example" in shown and "proxy:3128" in shown


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_MODLE", "demo")
    assert one("variables", "note").fix == "Did you mean LLMCLI_MODEL?"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in one("network", "note").text
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    assert "NUMBA_CPU_NAME" in one("cpu", "note").text


def test_what_a_terminal_would_obey_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLMCLI_MODEL", "\x1b[2Jevil")
    assert main(["doctor"]) == 10
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and r"\x1b[2Jevil" in captured.out


def test_packages_out_of_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "_requirements", lambda: ["numpy>=99,<100", "rich>=14"])
    assert one("packages", "note").fix == "pip install 'numpy>=99,<100'"
    monkeypatch.setattr(around, "_requirements", lambda: ["no-such-package>=1"])
    assert "not installed" in one("packages", "problem").text


@pytest.mark.parametrize(
    ("version", "limits", "fits"),
    [("0.68.1", ">=0.68,<0.69", True), ("0.69.0", ">=0.68,<0.69", False), ("0.67.9", ">=0.68,<0.69", False), ("2", ">=2.0,<3", True),
     ("3.1.6", ">=3.1.6,<4", True), ("15.0.0", ">=14,<16", True), ("0.69.0rc1", ">=0.68,<0.69", False), ("1", "", True)],
)  # fmt: skip
def test_ranges_of_versions(version: str, limits: str, fits: bool) -> None:
    assert around.within(version, limits) == fits


def test_a_check_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Row]:
        raise ZeroDivisionError("oh")
        yield

    def missing() -> Iterator[Row]:
        raise ImportError("no numpy")
        yield

    monkeypatch.setattr(checks, "CHECKS", {"a": broken, "b": missing, "models": checks.CHECKS["models"]})
    assert [(row.name, row.state) for row in checks.examine()] == [("a", "note"), ("b", "problem"), ("models", "ok"), ("default", "ok")]
