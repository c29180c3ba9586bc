"""Cases 52 and 53 with a stub of the driver: whole commands meet drivers and GPUs that are not there, too old, too small or lost."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from harness import assert_clean, attempt, snapshot
from stubcuda import driver

if importlib.util.find_spec("llmcli.backends.cuda") is None:
    pytest.skip("there is no CUDA backend", allow_module_level=True)

RUN = ["run", "-m", "tiny:none", "--temp", "0", "-n", "5", "Once"]
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "no device": ({"cuInit": 100}, "no NVIDIA GPU", 7),
    "none counted": ({"count": 0}, "no NVIDIA GPU", 7),
    "another driver's library": ({"cuInit": 803}, "the NVIDIA driver does not work: cuInit: CUDA_ERROR_OF_THE_STUB (803)", 7),
    "an old GPU": ({"major": 7, "minor": 5}, "compute capability 7.5", 7),
    "no packages": ({"packages": ""}, "numba-cuda", 2),
    "an old driver": ({"version": 12080}, "the NVIDIA driver is too old: it runs CUDA 12.8", 7),
    "an ancient driver": ({"version": 11040, "packages": "12"}, "the NVIDIA driver is too old: it runs CUDA 11.4", 7),
    "no memory": ({"free": 1 << 20}, "not enough GPU memory", 7),
    "not even for a context": ({"cuDevicePrimaryCtxRetain": 2}, "", 7),
    "a GPU that is lost": ({"cuMemGetInfo_v2": 46}, "", 7),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_that_cannot_be_used(case: Path, tmp_path: Path, name: str) -> None:
    """`--device cuda` says why and ends; `auto` computes on the CPU."""
    said, why, code = CASES[name]
    if said.get("packages") == "" and importlib.util.find_spec("numba_cuda"):
        pytest.skip("numba-cuda is installed")
    variables = driver(tmp_path / "driver", **said)
    before = snapshot(case)
    proc = attempt([*RUN, "--device", "cuda"], case / "home", variables=variables, heals=[code])
    assert proc.code == code and why in proc.lines[-1] and "--device cpu" in proc.lines[-1], proc.err
    assert proc.out == b""
    assert_clean(proc, before, snapshot(case))
    auto = attempt([*RUN, "--device", "auto", "--gpu-layers", "all"], case / "home", variables=variables)
    assert auto.code == 0 and auto.out == attempt([*RUN, "--device", "cpu"], case / "home").out
    assert_clean(auto, before, snapshot(case))


def test_no_driver(case: Path) -> None:
    before = snapshot(case)
    proc = attempt([*RUN, "--device", "cuda"], case / "home", heals=[7])
    if proc.code == 0:
        pytest.skip("there is a GPU here")
    assert proc.code == 7 and "no NVIDIA driver" in proc.lines[-1] and "--device cpu" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))
