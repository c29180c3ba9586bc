"""`llm warmup`: which kernels of a GPU are compiled ahead, and for which GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from devices import SPECS, made

from llmcli import places, warmup
from llmcli.backends.cuda import device, driver, objects, run
from llmcli.backends.cuda import warmup as cuda
from llmcli.backends.cuda.device import Gpu
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.cli import app
from llmcli.errors import DeviceError
from llmcli.models import decoder
from llmcli.models.shapes import SHAPES
from llmcli.weights.randoms import format_of

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")


class Memory:
    """Arrays of this machine in the place of a GPU's."""

    def array(self, count: int, dtype: Any) -> Any:
        return driver.Array(0, max(1, count), dtype, None)

    def pinned(self, count: int, dtype: Any) -> Any:
        return np.zeros(max(1, count), dtype)

    def constant(self, values: Any) -> Any:
        return driver.Array(0, values.size, values.dtype, None)

    def upload(self, pieces: Iterable[Any], count: int, dtype: Any) -> Any:
        assert sum(piece.nbytes for piece in pieces) == count * np.dtype(dtype).itemsize
        return self.array(count, dtype)


@pytest.mark.parametrize("name", SPECS)
def test_kernels_are_those_that_a_runner_starts(name: str) -> None:
    model = made(SPECS[name], "int4", "f16")
    memory: Any = Memory()
    lowering = run.lowered(model.plan, model.weights, model.cache, 300, memory)
    launches = [launch for rows in range(1, 301) for launch in lowering.launches(*[1 << (rows - 1).bit_length()] * 2)]
    started = {(launch.kernel.reference, driver.signature(launch.args)) for launch in launches}
    formats = {name: tensor.format for name, tensor in model.weights.items()}
    assert set(cuda.kernels(model.plan, formats, "f16", 300)) == started


@pytest.mark.parametrize("quantization", warmup.QUANTIZATIONS)
def test_common_models_need_no_others(quantization: str) -> None:
    ready = set(warmup.gpu_kernels())
    for spec in SHAPES.values():
        plan = decoder.plan(spec, 512)
        formats = {name: format_of(weight, quantization) for name, weight in plan.weights.items()}
        assert set(cuda.kernels(plan, formats, "f16", 256)) <= ready


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Compute capabilities for which kernels were compiled."""
    found: list[tuple[int, int]] = []

    def load(keys: Any, capability: tuple[int, int], notify: Any, progress: Any) -> None:
        found.append(capability)
        progress("a.kernel", 1, 1)

    monkeypatch.setattr(objects, "load", load)
    monkeypatch.setattr(warmup.cpu, "warmup", lambda report, notify: found.append((0, 0)))
    monkeypatch.setattr(device, "compiler", lambda: 13)
    return found


def test_for_a_gpu_that_is_elsewhere(compiled: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["warmup", "--gpu-arch", "sm_90"]) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert compiled == [(9, 0)]
    assert f"{len(warmup.gpu_kernels())} kernels for sm_90 (1 compiled in 0.0 s) in {places.kernels() / objects.maker()}" == said


def test_for_this_machine(compiled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "usable", lambda: [Gpu(n, "Stub", (8, n // 2), 1 << 30) for n in range(4)])
    assert app.main(["warmup"]) == 0 and compiled == [(0, 0), (8, 0), (8, 1)]
    assert "kernels for this CPU (all were there) in " in capsys.readouterr().err
    compiled.clear()
    assert app.main(["warmup", "--device", "cuda"]) == 0 and compiled == [(8, 0), (8, 1)]
    compiled.clear()
    assert app.main(["warmup", "--device", "cpu"]) == 0 and compiled == [(0, 0)]


def test_without_a_gpu(compiled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def usable() -> list[Gpu]:
        raise DeviceError("no NVIDIA driver", "a test", "Install it")

    monkeypatch.setattr(device, "usable", usable)
    assert app.main(["warmup"]) == 0 and compiled == [(0, 0)]
    assert app.main(["warmup", "--device", "cuda"]) == 7
    assert "no NVIDIA driver: a test" in capsys.readouterr().err
    monkeypatch.setattr(device, "compiler", lambda: None)
    assert app.main(["warmup", "--gpu-arch", "sm_90"]) == 2
    assert "pip install 'llmcli[cuda]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpu-arch", "h100"], "'h100' is not sm_ and a number"),
        (["--gpu-arch", "sm_75"], "kernels need sm_80"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--device", "cpu", "--gpu-arch", "sm_90"], "that device is no GPU"),
    ],
)
def test_what_cannot_be_meant(words: list[str], why: str, compiled: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["warmup", *words]) == 2 and not compiled
    shown = capsys.readouterr().err
    assert why in shown and shown.count("\n") == 1
