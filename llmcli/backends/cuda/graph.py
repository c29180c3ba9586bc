"""A sequence of copies and launches, recorded once and then started with one call (a CUDA graph).

A step of one token is some hundred launches of a few microseconds each; started one by one from Python they would take longer than
they run. What a graph may not contain, or a driver that cannot record: `capture` says None, and the work is done call by call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcli.errors import DeviceError


def capture(stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
    """Records what `work` starts on numba's stream, which must be idle, and must have been done once before, so that all kernels are
    compiled and loaded. Returns what starts it again; None where that cannot be recorded (nothing has been done then)."""
    from cuda.bindings import driver

    handle = driver.CUstream(int(stream))
    # relaxed: what other threads do with the GPU meanwhile is none of our business
    if _code(driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)):
        return None
    try:
        work()
    except Exception:
        driver.cuStreamEndCapture(handle)
        return None
    code, graph = driver.cuStreamEndCapture(handle)
    if int(code) or graph is None:
        return None
    code, executable = driver.cuGraphInstantiate(graph, 0)
    driver.cuGraphDestroy(graph)
    return None if int(code) else _Graph(driver, executable, handle)


class _Graph:
    def __init__(self, driver: Any, executable: Any, handle: Any) -> None:
        self._driver, self._executable, self._handle = driver, executable, handle

    def __call__(self) -> None:
        code = _code(self._driver.cuGraphLaunch(self._executable, self._handle))
        if code:
            raise DeviceError("the GPU failed", f"cuGraphLaunch: error {code}", "Try again, or use --device cpu")

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)


def _code(result: tuple[Any, ...]) -> int:
    return int(result[0])
