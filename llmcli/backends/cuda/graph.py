"""A sequence of copies and launches, recorded once and then started with one call (a CUDA graph).

A step of one token is some hundred launches of a few microseconds each; started one by one from Python they would take longer than
they run. What a graph may not contain, or a driver that cannot record: `capture` says None, and the work is done call by call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from llmcli.backends.cuda import driver
from llmcli.backends.cuda.device import SUCCESS
from llmcli.backends.cuda.driver import Failure, Stream

RELAXED = 2
"""While recording: what other threads do with the GPU meanwhile is none of our business."""


def capture(stream: Stream, work: Callable[[], None]) -> Graph | None:
    """Records what `work` starts on the stream, which must be idle, and must have been done once before, so that all kernels are loaded.
    Returns what starts it again; None where that cannot be recorded (nothing has been done then)."""
    if driver.code("cuStreamBeginCapture_v2", stream.handle, RELAXED) != SUCCESS:
        return None
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    done = False
    try:
        work()
        done = True
    except Failure:
        return None
    finally:
        ended = driver.code("cuStreamEndCapture", stream.handle, ctypes.byref(graph))
        if graph.value:
            if done and ended == SUCCESS:
                driver.code("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
            driver.code("cuGraphDestroy", graph)
    return Graph(stream, executable.value) if executable.value else None


class Graph:
    """What was recorded. A call starts it; raises driver.Failure."""

    def __init__(self, stream: Stream, handle: int) -> None:
        self._stream, self._handle = stream, handle
        stream.gpu.release_after(self, "cuGraphExecDestroy", handle)

    def __call__(self) -> None:
        driver.call("cuGraphLaunch", self._handle, self._stream.handle)
