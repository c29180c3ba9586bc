"""--device, --gpu-layers and --gpu-split, with stub drivers: what is decided, what is said, and what it costs where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli import engine
from llmcli.backends.cuda import device
from llmcli.cli import app
from llmcli.errors import DeviceError, OutOfMemory, UsageError
from llmcli.offload import decide
from llmcli.offload.decide import Wish
from llmcli.offload.place import Costs, Share
from test_cuda_device import Library
from test_offload import costs


@pytest.fixture
def found() -> Costs:
    return costs()[0]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, 5 GiB free on each."""
    monkeypatch.delenv(device.SIMULATOR, raising=False)
    library = Library((9, 0), (9, 0))
    monkeypatch.setattr(device, "driver", lambda: device.Driver(library))
    monkeypatch.setattr(device, "compiler", lambda: 13)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.SIMULATOR, raising=False)

    def driver() -> Any:
        raise DeviceError("no NVIDIA driver", "a test", "Install it")

    monkeypatch.setattr(device, "driver", driver)


def said(wish: Wish, costs: Costs) -> list[str]:
    notes: list[str] = []
    decide.say(wish, decide.decide(wish, costs), costs.layers, notes.append)
    return notes


def test_auto_without_a_gpu_is_the_cpu(no_gpu: None, found: Costs) -> None:
    for wish in (Wish(), Wish(layers=0), Wish(layers=1), Wish(layers="all"), Wish(split=(1.0,))):
        assert decide.decide(wish, found).placement == (Share("cpu", found.layers),)
        expected = ["the CPU computes all layers: no NVIDIA driver: a test"] if wish.particular else []
        assert said(wish, found) == expected
    with pytest.raises(DeviceError, match="no NVIDIA driver: a test. Install it"):
        decide.decide(Wish("cuda"), found)
    assert decide.decide(Wish("cuda", 0), found).on_gpus == 0


def test_auto_leaves_small_models_to_the_cpu(gpus: None, found: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "WORTH", 1 << 60)
    assert decide.decide(Wish(), found).on_gpus == 0 and said(Wish(), found) == []
    assert decide.decide(Wish(layers="all"), found).on_gpus == found.layers
    monkeypatch.setattr(decide, "WORTH", 1)
    assert decide.decide(Wish(), found).placement == (Share("cuda:0", found.layers),)


def test_layers_and_shares(gpus: None, found: Costs) -> None:
    count = found.layers
    assert decide.decide(Wish("cuda", 1), found).placement == (Share("cpu", count - 1), Share("cuda:0", 1))
    assert decide.decide(Wish("cuda", 10_000), found).placement == (Share("cuda:0", count),)
    split = decide.decide(Wish("cuda", "all", (1.0, 2.0)), found).placement
    assert [share.device for share in split] == ["cuda:0", "cuda:1"] and sum(share.layers for share in split) == count
    with pytest.raises(UsageError, match="--gpu-split over 3 GPUs: 2 can be used"):
        decide.decide(Wish(split=(1.0, 1.0, 1.0)), found)


def test_only_gpus_that_are_needed_are_asked(gpus: None, found: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for free memory connects with a GPU: that costs time, and memory there."""
    asked: list[int] = []
    room = 1 << 40

    def free(number: int) -> int:
        asked.append(number)
        return room

    monkeypatch.setattr(device, "free", free)
    assert decide.decide(Wish("cuda"), found).placement == (Share("cuda:0", found.layers),) and asked == [0]
    for wish in (Wish("cuda", "all", (1.0, 1.0)), Wish("cuda")):
        asked.clear()
        decision = decide.decide(wish, found)
        assert asked == [0, 1] and {share.device for share in decision.placement} == {"cuda:0", "cuda:1"}
        room = found.part(0, found.layers) - 1  # of one: both together hold everything


def test_what_does_not_fit_is_said(gpus: None, found: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free", lambda number: 0 if number else found.part(found.layers - 1, found.layers))
    assert decide.decide(Wish("cuda"), found).on_gpus == 1
    notes = said(Wish("cuda"), found)
    assert len(notes) == 1 and notes[0].startswith(f"1 of {found.layers} layers are on the GPU, because its free memory holds no more")
    monkeypatch.setattr(device, "free", lambda number: 1 << 20)
    with pytest.raises(OutOfMemory, match="not enough GPU memory for one layer of this model: .* and 1 MiB are free") as error:
        decide.decide(Wish("cuda"), found)
    assert error.value.code == 7
    assert decide.decide(Wish("auto", "all"), found).on_gpus == 0


WRONG = [
    (["--device", "gpu"], "no device 'gpu'"),
    (["--device", "cpu", "-ngl", "2"], "--gpu-layers with --device cpu"),
    (["--device", "reference", "--gpu-split", "1"], "--gpu-split with --device reference"),
    (["-ngl", "many"], "not a whole number"),
    (["-ngl", "-1"], "not a whole number"),
    (["--gpu-split", "0,0"], "gives no GPU a share"),
    (["--gpu-split", "1,nan"], "not a number"),
]


@pytest.mark.parametrize(("words", "why"), WRONG)
def test_what_cannot_be_meant(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "a", "-n", "1", "--no-stdin", *words]) == 2
    shown = capsys.readouterr().err
    assert why in shown and shown.count("\n") == 1


def test_commands_say_why(no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "a", "-n", "1", "--no-stdin", "--device", "cuda"]) == 7
    assert capsys.readouterr().err == "llm: error: no NVIDIA driver: a test. Install it\n"
    assert app.main(["next", "a", "--no-stdin", "-ngl", "3"]) == 0
    assert "the CPU computes all layers: no NVIDIA driver: a test\n" in capsys.readouterr().err
    assert app.main(["next", "a", "--no-stdin"]) == 0
    assert "NVIDIA" not in capsys.readouterr().err


def test_show_explains_the_placement(gpus: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["show", "demo", "--gpu-layers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "device", "weights", "cache", "why"] and len(lines) == 7
    assert [line.split()[1] for line in lines[1:]] == ["cpu"] * 4 + ["cuda:0"] * 2
    assert lines[1].endswith("-ngl 2; with the table of tokens") and lines[-1].endswith("MiB of 5,120 MiB free; with the head")
    assert app.main(["show", "demo", "--gpu-layers", "auto"]) == 0
    assert capsys.readouterr().out.endswith("no GPU is used: weights of less than 128 MiB are on the CPU sooner\n")
    assert app.main(["show", "demo", "--gpu-layers", "auto", "--plan"]) == 2


def test_a_run_on_the_cpu_pays_nothing(tmp_path: Path) -> None:
    """With --device auto and a small model, no driver is opened and nothing of Numba imported."""
    code = """
import ctypes, sys
real = ctypes.CDLL
def refuse(name, *rest, **options):
    assert "libcuda" not in str(name)
    return real(name, *rest, **options)
ctypes.CDLL = refuse
from llmcli.cli import app
assert app.main(["run", "a", "-n", "1", "--no-stdin"]) == 0
assert not {name for name in sys.modules if name.startswith(("numba", "cuda", "llmcli.backends.cuda.run"))}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_python_takes_the_same(no_gpu: None) -> None:
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        llmcli.load(device="cuda")
    with llmcli.load(device="auto") as model:
        assert model.next_token("The").candidates
    with pytest.raises(UsageError, match="gpu_layers"):
        llmcli.load(gpu_layers="half")


def test_the_cache_of_gpu_layers_takes_no_memory_here(gpus: None) -> None:
    from llmcli.weights import packed, store

    with packed.open(store.find("demo")) as file:
        _, plan = engine.read_plan(file, None)
        decision = decide.decide(Wish("cuda", 2), engine.costs_of(file, plan, "f16"))
        whole, left = engine.memory_of(file, plan, "f16"), engine.memory_of(file, engine.plan_here(plan, decision), "f16")
        assert left["cache"] * 6 == whole["cache"] * 4 and left["weights"] == whole["weights"]
