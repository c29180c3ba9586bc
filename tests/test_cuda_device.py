"""What is said of drivers, GPUs and packages, with stub drivers: a library whose functions are Python's."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from llmcli.backends.cuda import device
from llmcli.backends.cuda.device import Driver, Gpu
from llmcli.errors import DeviceError, LlmError, MissingExtra


class Library:
    """A driver with GPUs of these capabilities. codes: what functions return instead of success; missing: functions it lacks."""

    def __init__(self, *capabilities: tuple[int, int], version: int = 13000, missing: str = "", **codes: int) -> None:
        self.capabilities, self._version, self.missing, self.codes = capabilities, version, missing, codes
        self.pushed = 0

    def __getattr__(self, name: str) -> Any:
        if name == self.missing or not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self.codes.get(name) or self.answer(name, *(getattr(a, "_obj", a) for a in arguments))

    def answer(self, name: str, *arguments: Any) -> int:
        match name, arguments:
            case "cuInit", _:
                pass
            case "cuDriverGetVersion", (out,):
                out.value = self._version
            case "cuDeviceGetCount", (out,):
                out.value = len(self.capabilities)
            case "cuDeviceGet", (out, number):
                out.value = number.value
            case "cuDeviceGetName", (out, _, number):
                out.value = f"Stub {number.value}".encode()
            case "cuDeviceTotalMem_v2", (out, _):
                out.value = 8 << 30
            case "cuDeviceGetAttribute", (out, which, number):
                out.value = self.capabilities[number.value][which.value - device.CAPABILITY_MAJOR]
            case "cuDevicePrimaryCtxRetain", (out, _):
                out.value = 1
            case "cuCtxPushCurrent_v2", _:
                self.pushed += 1
            case "cuCtxPopCurrent_v2", _:
                self.pushed -= 1
            case "cuMemGetInfo_v2", (free, total):
                assert self.pushed == 1
                free.value, total.value = 5 << 30, 8 << 30
            case "cuGetErrorName", (_, out):
                out.value = b"CUDA_ERROR_SYSTEM_NOT_READY"
            case _:
                return 1
        return 0


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(device.SIMULATOR, raising=False)
    monkeypatch.setattr(device, "compiler", lambda: 13)
    device.driver.cache_clear()
    yield
    device.driver.cache_clear()


def here(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    """This machine has that driver."""

    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        if library is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_what_a_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library((9, 0), (7, 5), version=12040)
    found = Driver(library)
    assert found.version() == (12, 4)
    assert found.gpus() == [Gpu(0, "Stub 0", (9, 0), 8 << 30), Gpu(1, "Stub 1", (7, 5), 8 << 30)]
    assert found.free(1) == 5 << 30 and library.pushed == 0
    here(monkeypatch, Library((9, 0), (7, 5)))
    assert [gpu.number for gpu in device.usable()] == [0]


CASES: dict[str, tuple[Any, int | None, str, int]] = {
    "no driver": (None, 13, "no NVIDIA driver: libcuda.so.1: cannot open shared object file. Install it", 7),
    "no device": (Library(cuInit=100), 13, "no NVIDIA GPU: the driver finds none. Check nvidia-smi", 7),
    "none counted": (Library(), 13, "no NVIDIA GPU: the driver finds none. Check nvidia-smi", 7),
    "broken": (Library(cuInit=802), 13, "the NVIDIA driver does not work: cuInit: CUDA_ERROR_SYSTEM_NOT_READY (802). Check nvidia-smi", 7),
    "nameless": (Library(cuInit=7, missing="cuGetErrorName"), 13, "the NVIDIA driver does not work: cuInit: error 7.", 7),
    "ancient": (
        Library((9, 0), missing="cuDeviceTotalMem_v2"),
        13,
        "the NVIDIA driver is too old: libcuda.so.1 lacks cuDeviceTotalMem_v2.",
        7,
    ),
    "old GPU": (Library((7, 5)), 13, "Stub 0 is too old: it has compute capability 7.5, and kernels need 8.0 (Ampere) or later. Use", 7),
    "no extra": (Library((8, 0)), None, "--device cuda needs a package that is not installed: numba-cuda. pip install 'llmcli[cuda]'", 2),
    "old driver": (
        Library((8, 0), version=12080),
        13,
        "the NVIDIA driver is too old: it runs CUDA 12.8, and numba-cuda is installed for CUDA 13. Update it to 580 or later, "
        "or pip install 'llmcli[cuda12]', or use --device cpu",
        7,
    ),
    "older driver": (
        Library((8, 0), version=11040),
        12,
        "the NVIDIA driver is too old: it runs CUDA 11.4, and numba-cuda is installed for CUDA 12. Update it to 525 or later, or use",
        7,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reasons(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, made_for, line, code = CASES[case]
    here(monkeypatch, library)
    monkeypatch.setattr(device, "compiler", lambda: made_for)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises((DeviceError, MissingExtra)) as found:
        device.usable()
    assert str(found.value).startswith(line) and found.value.code == code
    assert isinstance(found.value, LlmError) and "\n" not in str(found.value) and "--device cpu" in str(found.value)


def test_a_hidden_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, Library(cuInit=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES is ''"):
        device.usable()
