"""Compiling and calling one CPU kernel at a time, for tests: `call(kernel("linear.int4", 8), args, chunks)`."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmcli.backends.cpu import images, objects, target
from llmcli.backends.cpu.kernels import emit
from llmcli.backends.cpu.records import HEADER, pack

POINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_ssize_t] * 3)


class Kernel:
    """A compiled kernel; calls follow Numba's convention: status = f(&result, &exception, args, chunk, thread).

    address: where it is, if its image is there already."""

    def __init__(self, function: Callable[[int, int, int], None], address: int | None = None) -> None:
        self._source = function
        self.function = POINTER(address or images.placed([emit.linked(self.compiled, "kernel")])[0])

    @functools.cached_property
    def compiled(self) -> Any:
        return emit.optimized(self._source)

    def __call__(self, args: npt.NDArray[np.int64], chunk: int, thread: int = 0) -> None:
        unused = (ctypes.c_void_p * 2)()
        status = self.function(ctypes.addressof(unused), ctypes.addressof(unused) + 8, args.ctypes.data, chunk, thread)
        assert status == 0

    @property
    def assembly(self) -> str:
        return str(self.compiled.library.get_asm_str())

    def calls(self) -> list[str]:
        """The call instructions in the kernel: an empty list means that its object needs no other symbol."""
        return re.findall(r"^\s+(?:call[a-z]*|blr?)\s.*$", self.assembly, re.MULTILINE)


def factory(name: str) -> Callable[..., Callable[[int, int, int], None]]:
    """The factory of a kernel by its full name, such as 'linear.int4'."""
    module, short = name.split(".")
    found = importlib.import_module(f"llmcli.backends.cpu.kernels.{module}").KERNELS[short]
    return found  # type: ignore[no-any-return]


@functools.cache
def kernel(name: str, *params: Any) -> Kernel:
    """The compiled kernel: the one that models use, where it is kept; else it is compiled once a session."""
    return Kernel(factory(name)(*params), objects.ready((name, params)))


def call(kernel: Kernel, args: npt.NDArray[np.int64], chunks: Iterable[int]) -> None:
    for chunk in chunks:
        kernel(args, chunk)


def header(**values: int) -> npt.NDArray[np.int64]:
    """A step's header; fields that are not given are 0."""
    return pack(HEADER, **{**dict.fromkeys(HEADER._fields, 0), **values})


only_x86 = pytest.mark.skipif(not target.is_x86(), reason="the other CPUs that tests compile for are x86-64")


def run_as(cpu: str, features: str, *command: str) -> str:
    """The output of Python running `command` with kernels made for another CPU."""
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def pass_as(cpu: str, chosen: str, *files: str) -> None:
    """Runs the tests of these files that -k `chosen` names with kernels made for another CPU. Skips what this CPU cannot run."""
    if cpu == "haswell" and "avx2" not in target.features():
        pytest.skip("this CPU has no AVX2")
    run_as(cpu, "", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)


def address(array: npt.NDArray[Any] | None) -> int:
    return 0 if array is None else int(array.ctypes.data)
