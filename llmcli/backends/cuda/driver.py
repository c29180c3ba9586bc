"""The driver's functions that a runner needs: memory, copies, streams, events, kernels from compiled code, graphs. By ctypes alone.

The names that memory.py uses are those of numba.cuda, whose simulator stands in for this module: gpus, stream, event, device_array,
pinned_array, to_device. All but `gpus[number]` are called within `with gpus[number]:`, which makes that GPU this thread's.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import weakref
from collections.abc import Iterable
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cuda import device, objects
from llmcli.backends.cuda.device import SUCCESS
from llmcli.backends.cuda.objects import Reference

NON_BLOCKING, PORTABLE = 1, 1
"""Of streams: independent of the driver's own; of page-locked memory: for all GPUs."""
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
"""Name -> types of arguments, as in cuda.h; all return a CUresult."""


class Failure(Exception):
    """An error of the driver. args: its number, and the function that returned it."""


def code(name: str, *arguments: Any) -> int:
    """Calls one of the driver's functions, and says what it returns."""
    function = device.driver().function(name)
    function.argtypes = FUNCTIONS[name]
    return int(function(*arguments))


def call(name: str, *arguments: Any) -> None:
    """Calls one of the driver's functions. Raises Failure."""
    found = code(name, *arguments)
    if found != SUCCESS:
        raise Failure(found, f"{name}: {device.driver().text(found)}")


def created(name: str, *arguments: Any) -> int:
    """The handle that the function gives by its first parameter."""
    handle = c_void_p()
    call(name, ctypes.byref(handle), *arguments)
    assert handle.value is not None
    return handle.value


class Gpu:
    """GPU number `number`; within `with`, it is this thread's. Its context is the one that every library in the process shares."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.capability = device.gpus()[number].capability
        handle = c_int()
        call("cuDeviceGet", ctypes.byref(handle), number)
        self._context = created("cuDevicePrimaryCtxRetain", handle.value)
        self._functions: dict[tuple[Reference, str], int] = {}

    def __enter__(self) -> Gpu:
        call("cuCtxPushCurrent_v2", self._context)
        _here.gpus = [*_used(), self]
        return self

    def __exit__(self, *_: object) -> None:
        _here.gpus = _used()[:-1]
        code("cuCtxPopCurrent_v2", ctypes.byref(c_void_p()))

    def release_after(self, owner: object, name: str, handle: int) -> None:
        """Calls a function with the handle when its owner is no more; at the process's end the driver sees to that."""
        weakref.finalize(owner, self._release, name, handle).atexit = False

    def _release(self, name: str, handle: int) -> None:
        # No error is raised: a lost GPU has lost this too. Whichever thread collects garbage may have another GPU.
        if code("cuCtxPushCurrent_v2", self._context) == SUCCESS:
            code(name, handle)
            code("cuCtxPopCurrent_v2", ctypes.byref(c_void_p()))

    def functions(self, wanted: Iterable[tuple[Reference, str]], **say: Any) -> None:
        """Compiles and loads these kernels. say: see objects.load."""
        new = [key for key in dict.fromkeys(wanted) if key not in self._functions]
        for key, cubin in objects.load(new, self.capability, **say).items():
            module = created("cuModuleLoadData", cubin)  # stays for the life of the process
            self._functions[key] = created("cuModuleGetFunction", module, objects.ENTRY)

    def function(self, key: tuple[Reference, str]) -> int:
        if key not in self._functions:
            self.functions([key])
        return self._functions[key]


class _Gpus:
    def __init__(self) -> None:
        self._made: dict[int, Gpu] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Gpu:
        with self._lock:
            if number not in self._made:
                self._made[number] = Gpu(number)
            return self._made[number]


gpus = _Gpus()
_here = threading.local()


def _used() -> list[Gpu]:
    return getattr(_here, "gpus", [])


def current() -> Gpu:
    """This thread's GPU."""
    return _used()[-1]


class Array:
    """A flat array on a GPU: [start:stop] and view() share its memory, which is freed after the last of them."""

    def __init__(self, pointer: int, size: int, dtype: npt.DTypeLike, memory: object) -> None:
        self.pointer, self.size, self.dtype, self._memory = pointer, size, np.dtype(dtype), memory
        self.nbytes = size * self.dtype.itemsize

    def __getitem__(self, part: slice) -> Array:
        start, stop, step = part.indices(self.size)
        assert step == 1
        return Array(self.pointer + start * self.dtype.itemsize, max(0, stop - start), self.dtype, self._memory)

    def view(self, dtype: npt.DTypeLike) -> Array:
        assert self.nbytes % np.dtype(dtype).itemsize == 0
        return Array(self.pointer, self.nbytes // np.dtype(dtype).itemsize, dtype, self._memory)

    def copy_to_device(self, source: Array | npt.NDArray[Any], stream: Stream) -> None:
        """Copies all of `source` here. From page-locked memory it has only begun when this returns."""
        assert source.nbytes == self.nbytes
        if isinstance(source, Array):
            call("cuMemcpyDtoDAsync_v2", self.pointer, source.pointer, self.nbytes, stream.handle)
        else:
            assert source.flags.c_contiguous
            call("cuMemcpyHtoDAsync_v2", self.pointer, source.ctypes.data, self.nbytes, stream.handle)

    def copy_to_host(self, target: npt.NDArray[Any], stream: Stream) -> None:
        """Copies all of this array, likewise."""
        assert target.nbytes == self.nbytes and target.flags.c_contiguous
        call("cuMemcpyDtoHAsync_v2", target.ctypes.data, self.pointer, self.nbytes, stream.handle)


class _Memory:
    """Owns memory of a GPU."""


def device_array(count: int, dtype: npt.DTypeLike, stream: Stream) -> Array:
    """`count` numbers, not initialised."""
    pointer, owner = c_uint64(), _Memory()
    call("cuMemAlloc_v2", ctypes.byref(pointer), count * np.dtype(dtype).itemsize)
    current().release_after(owner, "cuMemFree_v2", pointer.value)
    return Array(pointer.value, count, dtype, owner)


def to_device(values: npt.NDArray[Any], stream: Stream) -> Array:
    """A copy of a flat array."""
    made = device_array(values.size, values.dtype, stream)
    made.copy_to_device(values, stream)
    stream.synchronize()  # `values` may be gone by the time that the copy begins
    return made


def pinned_array(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Page-locked memory of this machine, not initialised."""
    size = count * np.dtype(dtype).itemsize
    pointer = created("cuMemHostAlloc", size, PORTABLE)
    owner: Any = (ctypes.c_uint8 * size).from_address(pointer)
    current().release_after(owner, "cuMemFreeHost", pointer)
    return np.frombuffer(owner, np.dtype(dtype))


class Stream:
    """What is started on it happens in order."""

    def __init__(self) -> None:
        self.gpu, self.handle = current(), created("cuStreamCreate", NON_BLOCKING)
        self.gpu.release_after(self, "cuStreamDestroy_v2", self.handle)

    def synchronize(self) -> None:
        call("cuStreamSynchronize", self.handle)

    def start(self, kernel: Reference, grid: int | tuple[int, ...], block: int, *arguments: Any) -> None:
        """Starts a kernel with arrays and numbers."""
        x, y, z = (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
        function = self.gpu.function((kernel, signature(arguments)))
        words = packed(arguments)
        pointers = (c_void_p * (len(words) // 8))(*range(base := ctypes.addressof(words), base + len(words), 8))
        call("cuLaunchKernel", function, x, y, z, block, 1, 1, 0, self.handle, pointers, None)


def signature(arguments: Iterable[Any]) -> str:
    """The types of a kernel's arguments, such as "f4 int float": an array of f32, an i64, an f64."""
    return " ".join(_kind(arg) for arg in arguments)


def _kind(arg: Any) -> str:
    assert not isinstance(arg, bool | np.generic), "numbers are Python's int and float"
    return "int" if isinstance(arg, int) else "float" if isinstance(arg, float) else arg.dtype.str[1:]


def packed(arguments: Iterable[Any]) -> ctypes.Array[Any]:
    """The kernel's parameters in Numba's order, 8 bytes each. An array is its owner (twice nobody), size, bytes of an element, address,
    shape and stride."""
    words = bytearray()
    for arg in arguments:
        if isinstance(arg, Array):
            words += struct.pack("<7q", 0, 0, arg.size, arg.dtype.itemsize, arg.pointer, arg.size, arg.dtype.itemsize)
        else:
            words += struct.pack("<d" if isinstance(arg, float) else "<q", arg)
    return (ctypes.c_char * len(words)).from_buffer(words)


class Event:
    """A moment in a stream."""

    def __init__(self) -> None:
        self.handle = created("cuEventCreate", 0)
        current().release_after(self, "cuEventDestroy_v2", self.handle)

    def record(self, stream: Stream) -> None:
        call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Waits for it; an event that was never recorded is past."""
        call("cuEventSynchronize", self.handle)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds from here to a later event; both are past."""
        found = c_float()
        call("cuEventElapsedTime", ctypes.byref(found), self.handle, other.handle)
        return found.value


stream, event = Stream, Event
