"""A driver's library as driver.py calls it: C functions (made by ctypes, so that arguments are converted as for the real one) over this
machine's memory. Copies happen at once, launches and graphs are written down."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_void_p
from typing import Any

from llmcli.backends.cuda import driver

ILLEGAL = 900


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
        self.pushed = 0
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
        own = getattr(self, f"_{name}", None)
        if own is not None:
            own(*arguments)
        elif name.removesuffix("_v2").endswith(("Create", "Retain", "LoadData", "GetFunction", "WithFlags")):
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
        assert self.pushed, "no GPU is current"
        del self.memory[pointer]

    def _copy(self, target: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(target, source, size)

    def _push(self, context: int) -> None:
        self.pushed += 1

    def _pop(self, _: int) -> None:
        self.pushed -= 1

    _cuMemAlloc_v2 = _cuMemHostAlloc = _allocate
    _cuMemFree_v2 = _cuMemFreeHost = _free
    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _cuMemcpyDtoDAsync_v2 = _copy
    _cuCtxPushCurrent_v2, _cuCtxPopCurrent_v2 = _push, _pop

    def _cuModuleLoadData(self, module: int, image: int) -> None:
        self.images.append(ctypes.string_at(image, 8))
        self._give(module, self._handle())

    def _cuStreamEndCapture(self, stream: int, graph: int) -> None:
        self._give(graph, self._handle())

    def _cuEventElapsedTime(self, milliseconds: int, start: int, end: int) -> None:
        c_float.from_address(milliseconds).value = 1.5

    def _cuLaunchKernel(self, function: int, *rest: int) -> None:
        *sizes, shared, stream, parameters, extra = rest
        assert extra is None
        found = [ctypes.string_at(c_void_p.from_address(parameters + 8 * i).value or 0, 8) for i in range(self.parameters)]
        self.launches.append((function, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, b"".join(found)))
