"""The simulator's tests of kernels on a real GPU: the same functions, the same bounds. Each file in a process of its own, because a
process has either the simulator or a GPU, and because a kernel's fault ends what its process can do on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli.backends.cuda import device
from llmcli.errors import LlmError

pytestmark = pytest.mark.gpu
FOLDER = Path(__file__).parent / "simulated"


FILES = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name != "test_simulated_models.py")
"""Whole models are test_gpu.py's, with kernels as they are started otherwise: from kept code."""


@pytest.mark.parametrize("file", FILES)
def test_kernels_on_a_gpu(file: str) -> None:
    if device.simulated():
        pytest.skip("the simulator is no GPU")
    try:
        device.usable()
    except LlmError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-o", "addopts=", str(FOLDER / file)]
    share = (os.cpu_count() or 1) // len(FILES)  # most of the time is compiling
    if share > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", str(share)]
    environment = {**os.environ, "LLMCLI_TEST_ON_GPU": "1"}
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[2], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout or file == "test_simulated_platform.py"
