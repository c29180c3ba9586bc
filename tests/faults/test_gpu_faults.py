"""Cases 52 and 53 with a stub of the driver: whole commands meet drivers and GPUs that are not there, too old, too small or lost."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Ended, assert_clean, attempt, snapshot
from made import models
from stubcuda import KEEP, driver

from llmcli import engine
from llmcli.offload.place import RESERVED, Costs
from llmcli.weights import packed
from terminal import environment

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
    "not even for a context": ({"cuDevicePrimaryCtxRetain": 2}, "the GPU has no memory left: cuDevicePrimaryCtxRetain", 7),
    "a GPU that is lost": ({"cuMemGetInfo_v2": 46}, "the NVIDIA driver does not work: cuMemGetInfo_v2", 7),
}


@pytest.fixture(scope="module")
def on_cpu(original: Path) -> bytes:
    """What the model says without any GPU."""
    proc = attempt([*RUN, "--device", "cpu"], original / "home")
    assert proc.code == 0, proc.err
    return proc.out


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_that_cannot_be_used(case: Path, on_cpu: bytes, tmp_path: Path, name: str) -> None:
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
    assert auto.code == 0 and auto.out == on_cpu and snapshot(case) == before


def test_no_driver(case: Path) -> None:
    before = snapshot(case)
    proc = attempt([*RUN, "--device", "cuda"], case / "home", heals=[7])
    if proc.code == 0:
        pytest.skip("there is a GPU here")
    assert proc.code == 7 and "no NVIDIA driver" in proc.lines[-1] and "--device cpu" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))


# --- Case 53: memory that is too little when the model is loaded, and that ends meanwhile

TEXT = "Once upon a time there was a little girl who had a dog"
ON_GPU = ["score", *RUN[1:3], "-c", "256", "--kv", "f32", "--window", "6", "--stride", "3", "--table", TEXT, "--device", "cuda"]
"""Steps of several sizes, the later ones recorded. (Generating, kernels that do nothing find the end of text likeliest.)"""
WINDOWS = "the text is read in windows"
LAYERS = 3
FEWER = re.compile(r"GPU 0 is out of memory: .*; (\d) instead of (\d) of 3 layers are on the GPU now")


@pytest.fixture(scope="module")
def kept(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of kernels that has those of the GPU too, which do nothing."""
    folder = tmp_path_factory.mktemp("gpu")
    shutil.copytree(os.environ["LLMCLI_KERNELS"], folder / "kernels", symlinks=True)
    words = [[*ON_GPU, "--gpu-layers", str(count)] for count in range(1, LAYERS + 1)]
    own = {**driver(folder / "driver"), "LLMCLI_HOME": str(original / "home"), "LLMCLI_KERNELS": str(folder / "kernels")}
    command = [sys.executable, "-c", KEEP, json.dumps(words)]
    done = subprocess.run(command, env=environment(own), stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return folder


def met(kept: Path, case: Path, code: int = 0, **wanted: int) -> tuple[Ended, list[int]]:
    """`llm run` with such a driver, after which all is clean; and the bytes that the GPU held after each change."""
    log = kept / "log"
    log.unlink(missing_ok=True)
    own = {**driver(kept / "driver", **wanted), "LLMCLI_KERNELS": str(kept / "kernels"), "STUB_CUDA_LOG": str(log)}
    before = snapshot(case)
    proc = attempt(ON_GPU, case / "home", variables=own, heals=[code])
    held = [int(line.split()[2]) for line in log.read_text().splitlines()] if log.exists() else []
    assert proc.code == code, proc.err
    assert_clean(proc, before, snapshot(case))
    return proc, held


def said(proc: Ended) -> list[str]:
    """The lines about GPUs."""
    return [line for line in proc.lines if WINDOWS not in line]


@pytest.fixture(scope="module")
def scored_on_cpu(original: Path) -> bytes:
    return attempt([*ON_GPU[:-1], "cpu"], original / "home").out


@pytest.fixture(scope="module")
def whole(kept: Path, original: Path) -> int:
    """The most bytes that the GPU holds when all goes well."""
    proc, held = met(kept, original)
    assert said(proc) == []
    return max(held)


def costs(case: Path) -> Costs:
    with packed.open(models(case) / "tiny-none.safetensors") as file:
        return engine.costs_of(file, engine.read_plan(file, 256)[1], "f32")


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_a_gpu_with_room_for_some_layers(kept: Path, case: Path, count: int) -> None:
    """As many layers are there as fit into what the driver says is free, which is kept to; with fewer than all a line says so."""
    room = costs(case).part(LAYERS - count, LAYERS)
    proc, held = met(kept, case, free=room, memory=room)
    few = f"{count} of 3 layers are on the GPU, because its free memory holds no more"
    assert said(proc) == [] if count == LAYERS else [few in line for line in said(proc)] == [True], proc.err
    assert 0 < max(held) <= room - RESERVED, "what is left to the driver is left to it"


def test_a_gpu_without_room_for_a_layer(kept: Path, case: Path) -> None:
    """Refused with both numbers, and nothing has been there."""
    room = costs(case).part(LAYERS - 1, LAYERS) - 1
    proc, held = met(kept, case, code=7, free=room)
    assert re.search(r"takes \d+ MiB, and \d+ MiB are free\. Use .*--device cpu", proc.lines[-1]) and not held, proc.err


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_memory_that_another_process_took_meanwhile(kept: Path, case: Path, whole: int, scored_on_cpu: bytes, share: float) -> None:
    """Less is there than the driver has said: layers come back until the rest fits; each attempt begins with an empty GPU."""
    proc, held = met(kept, case, memory=int(share * whole))
    told = [tuple(map(int, FEWER.search(line).groups())) for line in said(proc)]  # type: ignore[union-attr]
    assert told == [(LAYERS - 1 - number, LAYERS - number) for number in range(len(told))] and told, proc.err
    assert max(held) <= share * whole and held.count(0) >= len(told)
    if not told[-1][0]:
        assert proc.out == scored_on_cpu


@pytest.mark.parametrize(
    ("function", "first"),
    [("cuLaunchKernel", 1), ("cuLaunchKernel", 60), ("cuGraphLaunch", 1), ("cuStreamSynchronize", 4), ("cuMemAlloc_v2", 20)],
)
def test_memory_that_ends_at_any_call(kept: Path, case: Path, whole: int, function: str, first: int) -> None:
    """Once: while it is loaded, in the first step, or in a later one. A layer comes back, and the answer goes on."""
    spoiled = {function: 2, f"first_{function}": first, f"times_{function}": 1}
    proc, held = met(kept, case, **spoiled)
    assert [FEWER.search(line) is not None for line in said(proc)] == [True], proc.err
    assert 0 in held and max(held) <= whole, "what was there is freed before less of it is put there again"
    assert proc.out.strip()


def test_a_gpu_that_never_has_memory_for_a_step(kept: Path, case: Path, scored_on_cpu: bytes) -> None:
    """Layer by layer comes back, and nothing is lost: the numbers are the CPU's."""
    proc, held = met(kept, case, cuLaunchKernel=2)
    assert [FEWER.search(line).groups() for line in said(proc)] == [("2", "3"), ("1", "2"), ("0", "1")]  # type: ignore[union-attr]
    assert proc.out == scored_on_cpu and held[-1] == 0


@pytest.mark.parametrize("first", [1, 60])
def test_a_gpu_that_fails_while_it_computes(kept: Path, case: Path, first: int) -> None:
    """No lack of memory: an error that names it, at once."""
    proc, _ = met(kept, case, code=7, cuLaunchKernel=719, first_cuLaunchKernel=first)
    assert "GPU 0 failed" in proc.lines[-1] and "719" in proc.lines[-1] and "--device cpu" in proc.lines[-1]
