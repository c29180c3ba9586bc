"""`benchmarks/gpu.py` in the simulator, with the smallest of everything: its way from the first stage to the table, and stages that go
wrong. Its figures mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
from gpu_stages import ahead, parity  # noqa: E402

from llmcli.backends.cuda import objects  # noqa: E402
from llmcli.backends.cuda.kernels.platform import SIMULATED  # noqa: E402


def test_all_stages_in_the_simulator(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--dry", "--json", str(path), "--budget", "550"]
    done = subprocess.run([*command, "--stages", "tests,peaks,kernels,models,parity,start"], capture_output=True, text=True, timeout=580)
    found = json.loads(path.read_text())
    assert done.returncode == 0, done.stdout + json.dumps(found["stages"], indent=1)
    assert found["simulated"] and done.stdout.endswith("simulated: no figure counts\n")
    stages = found["stages"]
    assert {stage["state"] for stage in stages.values()} == {"done"}
    assert "passed" in stages["tests"]["rows"][-1]["line"]
    kinds = {name: {row["what"] for row in stage["rows"]} for name, stage in stages.items()}
    assert kinds["kernels"] == {"operation", "matrix by vector", "matrix by matrix"}
    operations = {row["kind"].partition(" ")[0] for row in stages["kernels"]["rows"] if row["what"] == "operation"}
    assert {"linear", "attention", "norm", "cache_write", "top", "embed", "activation", "experts_up", "experts_down", "route"} <= operations
    assert {"norm and quantize", "cache_write and rope"} <= {row.get("kind") for row in stages["kernels"]["rows"]}
    assert kinds["models"] == {"made", "decode", "prompt"}
    (first,) = [row for row in stages["models"]["rows"] if row["what"] == "decode"]
    assert first["bytes"] > 0 and first["share_of_copy"] > 0
    by_layers = {row["on_gpu"]: row for row in stages["parity"]["rows"]}
    assert (
        by_layers[1]["logit_deviation"] > 0.1
        and by_layers[0]["same_bits"]
        and by_layers[1]["same_top"] == 1
        and by_layers[1]["largest_logit_error"] < 1e-4
    )
    (start,) = stages["start"]["rows"]
    assert 0 < start["python_s"] < start["weights_read_s"] < start["loaded_s"] < start["first_token_s"] < start["second_token_s"]


def test_distances_of_logits() -> None:
    expected = np.random.default_rng(1).standard_normal((20, 600)).astype(np.float32)
    found = expected.copy()
    found[3, 7] += 9  # the likeliest now
    found[5] += 0.5  # no other likeliest token, and the same probabilities
    figures = parity.difference(found, expected)
    assert figures["same_top"] == 0.95 and abs(figures["largest_logit_error"] - 9) < 1e-5 and not figures["same_bits"]
    assert figures["logit_error_q50"] == 0 and abs(figures["logit_error_q99"] - 0.5) < 1e-6
    assert abs(figures["largest_of_position_q99"] - np.quantile([9, 0.5, *[0] * 18], 0.99)) < 1e-5
    exact = 9 - np.log1p((np.exp(9.0) - 1) * np.exp(np.float64(expected[3, 7])) / np.exp(expected[3].astype(np.float64)).sum())
    assert abs(figures["largest_log_probability_error"] - max(exact, 9 - exact)) < 1e-3


@pytest.mark.parametrize(
    ("program", "state", "note"),
    [
        ('print(\'{"what": "copy", "bytes_per_s": 5}\'); 1 / 0', "failed", "ZeroDivisionError: division by zero"),
        ('print(\'{"what": "copy", "bytes_per_s": 5}\', flush=True); import time; time.sleep(60)', "abandoned", "ended after 3 s"),
    ],
)
def test_a_stage_that_goes_wrong_is_noted_and_keeps_its_rows(
    program: str, state: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    run = gpu.Run(tmp_path / "gpu.json", 100.0, False)
    monkeypatch.setattr(run, "command", lambda name, limit: [sys.executable, "-c", program])
    run.stage("peaks", 2.0)
    run.write()
    own: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())["stages"]["peaks"]
    assert own["state"] == state and note in (own.get("error"), own.get("note"))
    assert own["rows"] == [{"what": "copy", "bytes_per_s": 5}] and run.known == {"copy": 5}
    assert any(note in line for line in gpu.table(run.found))


def test_stages_look_where_this_process_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that were brought along in a folder are for the stages, and for what they start."""
    (tmp_path / "brought_along.py").write_text("")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("PYTHONPATH", tmp_path.name)
    run = gpu.Run(tmp_path / "gpu.json", 100.0, False)
    program = 'import brought_along, gpu_stages, llmcli; print(\'{"what": "found"}\'); print("{")'
    monkeypatch.setattr(run, "command", lambda name, limit: [sys.executable, "-c", program])
    run.stage("peaks", 30.0)
    own = run.found["stages"]["peaks"]
    assert own["state"] == "done" and own["rows"] == [{"what": "found"}], "half a line is no row"


@pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")
def test_kernels_can_be_compiled_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[int, int], list[objects.Key]] = {}
    monkeypatch.setattr(objects, "load", lambda keys, capability, notify, progress: asked.update({capability: list(keys)}))
    ahead.compile_all("sm_90")
    modules = {reference[0].partition(".")[0] for reference, _ in asked[9, 0]}
    assert {"decode", "prompt", "floats", "experts", "attention_decode", "attention_prompt", "norm", "cache", "top", "embed"} <= modules


def test_what_fails_is_told_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(
        "import os\n\ndef test_one():\n    assert 1 == 2, 'a reason'\n\ndef test_two():\n    os._exit(3)\n"
    )
    command = gpu.tests(True)[:-1] + ["-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": gpu.search_path()}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "AssertionError: a reason" in done.stdout


def test_without_a_package_its_stages_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "here", lambda package: package != "torch")
    run = gpu.Run(tmp_path / "gpu.json", 100.0, True)
    assert run.all(["torch"]) == 0
    assert "torch is not installed: no torch" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"]["torch"]["note"] == "not installed: torch"
