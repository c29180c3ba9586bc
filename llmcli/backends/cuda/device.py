"""Which NVIDIA GPUs are here and whether kernels can run on them: asked of the driver's own library (libcuda), by ctypes alone.

Nothing is imported that compiles. Where something is missing, the error says what and how to get it; `--device auto` asks the same
questions and takes an error for a no.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmcli import memory
from llmcli.errors import DeviceError, MissingExtra

LIBRARY = "libcuda.so.1"
SIMULATOR = "NUMBA_ENABLE_CUDASIM"
LEAST = (8, 0)
"""Compute capability: products on the tensor cores are of 32 signed bytes (mma.sync.m16n8k32), and copies past registers (cp.async)."""
DRIVERS = {13: "580", 12: "525"}
"""The first driver of each CUDA version, on Linux (NVIDIA's table of minor version compatibility)."""
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""cuDeviceGetAttribute's numbers."""
SUCCESS, OUT_OF_MEMORY, NO_DEVICE = 0, 2, 100
CPU = "or use --device cpu"


@dataclass(frozen=True)
class Gpu:
    """number: as CUDA counts (CUDA_VISIBLE_DEVICES); memory: bytes."""

    number: int
    name: str
    capability: tuple[int, int]
    memory: int


class Driver:
    """The driver's library. Raises DeviceError where it does not start."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))

    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver runs, such as (12, 4)."""
        found = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(found))
        return found.value // 1000, found.value % 1000 // 10

    def gpus(self) -> list[Gpu]:
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return [self._gpu(number) for number in range(count.value)]

    def free(self, number: int) -> int:
        """Bytes of a GPU's memory that nobody uses. The process is connected with the GPU from now on: that takes memory too."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxPushCurrent_v2", context)
        try:
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(context))
        return free.value

    def _gpu(self, number: int) -> Gpu:
        device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        for value, attribute in ((major, CAPABILITY_MAJOR), (minor, CAPABILITY_MINOR)):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        return Gpu(number, name.value.decode("utf-8", "replace"), (major.value, minor.value), size.value)

    def function(self, name: str) -> Any:
        """One of the library's functions. Raises DeviceError."""
        function = getattr(self._library, name, None)
        if function is None:
            raise DeviceError("the NVIDIA driver is too old", f"{LIBRARY} lacks {name}", f"Update it, {CPU}")
        return function

    def _call(self, name: str, *arguments: Any) -> None:
        code = self.function(name)(*arguments)
        if code == SUCCESS:
            return
        if code == NO_DEVICE:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            why = "the driver finds none" + (f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else "")
            raise DeviceError("no NVIDIA GPU", why, f"Check nvidia-smi (a container needs --gpus all), {CPU}")
        if code == OUT_OF_MEMORY:
            raise DeviceError("the GPU has no memory left", f"{name}: {self.text(code)}", f"Close other programs that use it, {CPU}")
        raise DeviceError("the NVIDIA driver does not work", f"{name}: {self.text(code)}", f"Check nvidia-smi, {CPU}")

    def text(self, code: int) -> str:
        """The driver's own name for an error."""
        text = ctypes.c_char_p()
        function = getattr(self._library, "cuGetErrorName", None)
        if function is None or function(ctypes.c_int(code), ctypes.byref(text)) != SUCCESS or text.value is None:
            return f"error {code}"
        return f"{text.value.decode('ascii', 'replace')} ({code})"


@cache
def driver() -> Driver:
    """This machine's driver. Raises DeviceError."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DeviceError("no NVIDIA driver", str(error), f"Install it (a container needs --gpus all), {CPU}") from error
    return Driver(library)


def simulated() -> bool:
    """Whether Numba's simulator stands in for a GPU."""
    return os.environ.get(SIMULATOR, "0") not in ("", "0")


def gpus() -> list[Gpu]:
    """All GPUs. Raises DeviceError where there is no driver or no GPU."""
    if simulated():
        return [Gpu(0, "Numba's CUDA simulator", LEAST, memory.available() or 1 << 32)]
    found = driver().gpus()
    if not found:
        raise DeviceError("no NVIDIA GPU", "the driver finds none", f"Check nvidia-smi, {CPU}")
    return found


def free(number: int) -> int:
    """Bytes of a GPU's free memory, measured. Raises DeviceError."""
    return gpus()[number].memory if simulated() else driver().free(number)


def usable() -> list[Gpu]:
    """The GPUs that run our kernels. Raises DeviceError, MissingExtra where there are none, for the first reason of those: no driver, no
    GPU, GPUs that are too old, no compiler, a driver that is too old for the compiler."""
    found = gpus()
    able = [gpu for gpu in found if gpu.capability >= LEAST]
    if not able:
        major, minor = found[0].capability
        why = f"it has compute capability {major}.{minor}, and kernels need {LEAST[0]}.{LEAST[1]} (Ampere) or later"
        raise DeviceError(f"{found[0].name} is too old", why, "Use --device cpu")
    if simulated():
        return able
    made_for = compiler()
    if made_for is None:
        raise MissingExtra("--device cuda needs a package that is not installed", "numba-cuda", f"pip install 'llmcli[cuda]', {CPU}")
    has = driver().version()
    if has[0] < made_for:
        why = f"it runs CUDA {has[0]}.{has[1]}, and numba-cuda is installed for CUDA {made_for}"
        first = DRIVERS.get(made_for)
        newer = f"Update it to {first} or later" if first else "Update it"
        other = f", or pip install 'llmcli[cuda{has[0]}]'" if has[0] == 12 else ""
        raise DeviceError("the NVIDIA driver is too old", why, f"{newer}{other}, {CPU}")
    return able


@cache
def compiler() -> int | None:
    """The CUDA version that numba-cuda is installed for; None without it."""
    import importlib.metadata  # 14 ms, which a run on the CPU does not need
    import importlib.util

    if importlib.util.find_spec("numba_cuda") is None:
        return None
    try:
        return int(importlib.metadata.version("cuda-bindings").partition(".")[0])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
