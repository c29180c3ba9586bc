"""Case 6, 7, 16, 17: random changes to all that strangers write. Each target reads its inputs in a process with a watchdog."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import TARGETS

FUZZ = str(Path(__file__).with_name("fuzz.py"))
PATIENCE = 20
"""Seconds for one input, on a machine that is busy with other things."""


def fuzzing(target: str, count: int, progress: Path, first: int = 0) -> None:
    progress.write_bytes(bytes(8))
    command = [sys.executable, FUZZ, target, str(first), str(count), str(progress)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        seen, since = b"", time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            word = progress.read_bytes()
            if word != seen:
                seen, since = word, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                process.kill()
                pytest.fail(f"{target}: input {int.from_bytes(seen, 'little')} takes more than {PATIENCE} s")
        out, err = process.communicate()
    at = f"{target}: input {int.from_bytes(progress.read_bytes(), 'little')}"
    assert process.returncode >= 0, f"{at}: signal {-process.returncode}"
    assert process.returncode == 0, f"{at}: {out}{err[-3000:]}"
    print(out, end="")


@pytest.mark.parametrize("target", TARGETS)
def test_two_thousand_inputs(target: str, tmp_path: Path) -> None:
    fuzzing(target, 2000, tmp_path / "progress")


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_a_hundred_thousand_inputs_together(target: str, tmp_path: Path) -> None:
    for first in range(0, 24_000, 6_000):
        fuzzing(target, 6_000, tmp_path / "progress", first)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_guided_by_coverage(target: str) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    command = [sys.executable, FUZZ, target, "--atheris", "-max_total_time=120", "-timeout=20", "-rss_limit_mb=4000", "-max_len=400000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr.splitlines()[-1])
