"""A driver's library as driver.py calls it: C functions (made by ctypes, so that arguments are converted as for the real one) over this
machine's memory. Copies happen at once, launches are written down; of a stream that records, both happen when the graph is started.

What a real driver does not allow is an error here too: calls without a current context, memory that is freed already, and of a stream that
records: waiting for it, and copies of memory here that is not page-locked (which a real driver waits for).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import c_float, c_int, c_void_p
from typing import Any

from llmcli.backends.cuda import driver

NO_CONTEXT, GONE, ILLEGAL = 201, 700, 900
WITHOUT_CONTEXT = ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2")
Work = list[Callable[[], int]]


class Library:
    """calls: names, in order; launches: (function, grid, block, shared bytes, stream, parameters as 8 bytes each); fails: name -> result.
    parameters: how many each function takes."""

    def __init__(self, **fails: int) -> None:
        self.calls: list[str] = []
        self.launches: list[tuple[Any, ...]] = []
        self.images: list[bytes] = []
        self.fails = dict(fails)
        self.parameters = 0
        self.memory: dict[int, Any] = {}
        self.recording: dict[int, Work] = {}
        self.graphs: dict[int, Work] = {}
        self.pushed = 0
        self._here = threading.local()
        self._handles = 1000
        self._functions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in driver.FUNCTIONS:
            raise AttributeError(name)
        if name not in self._functions:
            # whatever is pointed to comes as an address
            kinds = [c_void_p if hasattr(kind, "contents") or kind is ctypes.c_char_p else kind for kind in driver.FUNCTIONS[name]]
            self._functions[name] = ctypes.CFUNCTYPE(c_int, *kinds)(lambda *arguments: self._call(name, *arguments))
        return self._functions[name]

    def _call(self, name: str, *arguments: Any) -> int:
        self.calls.append(name)
        if name in self.fails:
            return self.fails[name]
        if name not in WITHOUT_CONTEXT and not getattr(self._here, "pushed", 0):
            return NO_CONTEXT
        own = getattr(self, f"_{name}", None)
        if own is not None:
            return own(*arguments) or 0
        if name.removesuffix("_v2").endswith(("Create", "Retain", "LoadData", "GetFunction", "WithFlags")):
            self._give(arguments[0], self._handle())
        return 0

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def _give(self, address: int, value: int) -> None:
        c_void_p.from_address(address).value = value

    def _allocate(self, address: int, size: int, *_: int) -> None:
        memory = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(memory)] = memory
        self._give(address, ctypes.addressof(memory))

    def _free(self, pointer: int) -> None:
        del self.memory[pointer]

    def _held(self, pointer: int, size: int) -> bool:
        """Whether that is memory of a GPU, or page-locked."""
        return any(start <= pointer and pointer + size <= start + len(memory) for start, memory in self.memory.items())

    def _copied(self, target: int, source: int, size: int, stream: int, *on_gpu: int) -> int:
        """on_gpu: the address or addresses of these two that are a GPU's."""

        def copy() -> int:
            if not all(self._held(pointer, size) for pointer in on_gpu):
                return GONE
            ctypes.memmove(target, source, size)
            return 0

        here = {target, source}.difference(on_gpu)
        if stream in self.recording and not all(self._held(pointer, size) for pointer in here):
            return ILLEGAL
        return self._done(stream, copy)

    def _done(self, stream: int, work: Callable[[], int]) -> int:
        if stream not in self.recording:
            return work()
        self.recording[stream].append(work)
        return 0

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copied(target, source, size, stream, target)

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copied(target, source, size, stream, source)

    def _cuMemcpyDtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copied(target, source, size, stream, target, source)

    def _cuStreamSynchronize(self, stream: int) -> int:
        return ILLEGAL if stream in self.recording else 0

    def _cuDeviceGet(self, device: int, ordinal: int) -> None:
        c_int.from_address(device).value = ordinal

    def _push(self, context: int) -> None:
        self.pushed += 1
        self._here.pushed = getattr(self._here, "pushed", 0) + 1

    def _pop(self, _: int) -> None:
        self.pushed -= 1
        self._here.pushed -= 1

    _cuMemAlloc_v2 = _cuMemHostAlloc = _allocate
    _cuMemFree_v2 = _cuMemFreeHost = _free
    _cuCtxPushCurrent_v2, _cuCtxPopCurrent_v2 = _push, _pop

    def _cuModuleLoadData(self, module: int, image: int) -> None:
        self.images.append(ctypes.string_at(image, 8))
        self._give(module, self._handle())

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        self.recording[stream] = []

    def _cuStreamEndCapture(self, stream: int, graph: int) -> None:
        self._give(graph, number := self._handle())
        self.graphs[number] = self.recording.pop(stream)

    def _cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> None:
        self._give(executable, number := self._handle())
        self.graphs[number] = self.graphs[graph]

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:
        return max(work() for work in [*self.graphs[executable], lambda: 0])

    def _cuGraphExecDestroy(self, executable: int) -> None:
        del self.graphs[executable]

    _cuGraphDestroy = _cuGraphExecDestroy

    def _cuEventElapsedTime(self, milliseconds: int, start: int, end: int) -> None:
        c_float.from_address(milliseconds).value = 1.5

    def _cuLaunchKernel(self, function: int, *rest: int) -> None:
        *sizes, shared, stream, parameters, extra = rest
        assert extra is None
        found = [ctypes.string_at(c_void_p.from_address(parameters + 8 * i).value or 0, 8) for i in range(self.parameters)]
        launch = (function, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, b"".join(found))

        def start() -> int:
            self.launches.append(launch)
            return 0

        self._done(stream, start)
