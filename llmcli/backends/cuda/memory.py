"""A GPU's memory, and what goes to and fro. Everything happens on one stream, in the order in which it is asked for.

Weights go up in pieces through two page-locked buffers: while one is on its way, the other is filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Notify
from llmcli.backends.cuda import driver
from llmcli.backends.cuda.device import OUT_OF_MEMORY
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.backends.cuda.launch import Launch
from llmcli.errors import DeviceError, OutOfMemory

STAGE = 16 << 20
"""Bytes of a page-locked buffer for uploads."""
cuda: Any = driver
if SIMULATED:
    from numba import cuda

Array = Any
"""A flat array on the GPU: driver.Array, or the simulator's."""


@contextmanager
def failures(device: int) -> Iterator[None]:
    """Errors of the driver become ours: OutOfMemory, or DeviceError where the GPU or its driver fails."""
    try:
        yield
    except driver.Failure as error:
        code, text = error.args
        if code == OUT_OF_MEMORY:
            raise OutOfMemory(f"GPU {device} is out of memory", text, "Use fewer layers there (--gpu-layers) or --device cpu") from error
        raise DeviceError(
            f"GPU {device} failed", f"{text} ({code})", "Try again; nvidia-smi and the system's log say more; or use --device cpu"
        ) from error


class Memory:
    """The memory of GPU number `device`, for one runner. Its arrays' own methods and the stream's are called within `errors()`."""

    def __init__(self, device: int) -> None:
        self.device = device
        with failures(device):
            self._context = cuda.gpus[device]
        with self.errors():
            self.stream = cuda.stream()
            self._stages: list[npt.NDArray[np.uint8]] = []
            self._events = [cuda.event(), cuda.event()]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Within: calls are for this GPU, from whichever thread, and its failures are ours."""
        with failures(self.device), self._context:
            yield

    def array(self, count: int, dtype: Any) -> Array:
        """`count` numbers (at least one), not initialised."""
        with self.errors():
            return cuda.device_array(max(1, count), dtype, stream=self.stream)

    def pinned(self, count: int, dtype: Any) -> npt.NDArray[Any]:
        """An array in page-locked memory of this machine, zeroed: copies of it are asynchronous."""
        with self.errors():
            found: npt.NDArray[Any] = cuda.pinned_array(max(1, count), dtype)
        found[:] = 0
        return found

    def upload(self, pieces: Iterable[npt.NDArray[Any]], count: int, dtype: Any) -> Array:
        """An array of `count` numbers, from pieces that follow each other."""
        target = self.array(count, dtype)
        bytes_of = target.view(np.uint8)
        at = 0
        for piece in pieces:
            flat = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            with self.errors():
                for start in range(0, flat.size, STAGE):
                    part = flat[start : start + STAGE]
                    self._send(bytes_of[at : at + part.size], part)
                    at += part.size
        assert at == count * np.dtype(dtype).itemsize
        return target

    def _send(self, target: Array, part: npt.NDArray[np.uint8]) -> None:
        if not self._stages:
            self._stages = [self.pinned(STAGE, np.uint8) for _ in range(2)]
        stage = self._stages[0][: part.size]
        self._events[0].synchronize()  # the copy that this buffer was last used for; at first there is none
        stage[:] = part
        target.copy_to_device(stage, stream=self.stream)
        self._events[0].record(self.stream)
        self._stages.reverse()
        self._events.reverse()

    def uploaded(self) -> None:
        """All weights are there: the buffers for uploads are given back."""
        with self.errors():
            self.stream.synchronize()
        self._stages = []

    def constant(self, values: npt.NDArray[Any]) -> Array:
        """A small array on the GPU."""
        with self.errors():
            return cuda.to_device(np.ascontiguousarray(values), stream=self.stream)

    def prepare(self, launches: Iterable[Launch], notify: Notify | None) -> None:
        """Gets the kernels of these launches: from where they are kept, or compiled. Raises InternalError, ResourceError."""
        if not SIMULATED:
            with self.errors():
                wanted = ((launch.kernel.reference, driver.signature(launch.args)) for launch in launches)
                self._context.functions(wanted, notify=notify)
