"""NumPy arrays as arguments of kernels: they are copied to the GPU before a launch and back after it, in the simulator too.

Numba would do that, and warn; but what a test gives twice, as an input and as the output, would be two arrays there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, cuda


def there_and_back(args: tuple[Any, ...], start: Callable[..., None]) -> None:
    """Calls start(*args) with arrays on the GPU in the place of NumPy's: one for all views of the same bytes."""
    on_gpu: dict[tuple[int, int], Any] = {}
    given = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            assert arg.ndim == 1 and arg.flags.c_contiguous
            place = arg.ctypes.data, arg.nbytes
            assert all(place == other or place[0] + place[1] <= other[0] or sum(other) <= place[0] for other in on_gpu), "arrays overlap"
            if place not in on_gpu:
                on_gpu[place] = cuda.to_device(arg.view(np.uint8))
            given.append(on_gpu[place].view(arg.dtype))
        else:
            given.append(arg)
    start(*given)
    if on_gpu:  # what has only arrays of its own may be recorded, which waiting would end
        cuda.synchronize()
    for arg in args:
        if isinstance(arg, np.ndarray) and arg.flags.writeable:
            on_gpu[arg.ctypes.data, arg.nbytes].copy_to_host(arg.view(np.uint8))


def install() -> None:
    """For all kernels from now on."""
    if config.ENABLE_CUDASIM:
        from numba.cuda.simulator.kernel import FakeCUDAKernel

        call = FakeCUDAKernel.__call__
        FakeCUDAKernel.__call__ = lambda self, *args: call(self, *args) if self._device else there_and_back(args, lambda *a: call(self, *a))
    else:
        from numba.cuda.core import config as settings
        from numba.cuda.dispatcher import CUDADispatcher

        settings.CUDA_LOW_OCCUPANCY_WARNINGS = 0
        launch = CUDADispatcher.call
        CUDADispatcher.call = lambda self, args, how: there_and_back(args, lambda *a: launch(self, a, how))
