"""Compiled kernels in this process's memory. An image (kernels/link.py makes it) runs wherever it lies, so nothing is linked here.

0    u64      where the kernel's function begins, counted from here
8    u64 [5]  the addresses of FUNCTIONS, filled in here
64   code and constants
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from functools import cache

from llmcli.errors import ResourceError

FUNCTIONS = ("sched_yield", "clock_gettime", "memset", "memcpy", "memmove")
"""The only functions that kernels may call outside of themselves: LLVM makes the last three out of loops."""
HEAD = 64
PAGE = 4096
"""Images begin at multiples of it: code for AArch64 counts distances in such pages."""
_READ_AND_RUN = mmap.PROT_READ | mmap.PROT_EXEC

_placed: list[mmap.mmap] = []
"""Never given back: somebody may be running in it."""


def placed(images: Sequence[bytes]) -> list[int]:
    """The address of each one's function, valid for the life of the process.

    Raises ResourceError where the system runs nothing but files."""
    starts, size = [], 0
    for image in images:
        starts.append(size)
        size += -(-len(image) // PAGE) * PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start, image in zip(starts, images, strict=True):
        memory[start : start + len(image)] = image
        struct.pack_into(f"<{len(FUNCTIONS)}Q", memory, start + 8, *_functions())
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    # From here on nobody can write there. (On AArch64, too, the system makes what was written visible as code.)
    if _library().mprotect(ctypes.c_void_p(base), ctypes.c_size_t(size), _READ_AND_RUN):
        raise ResourceError("compiled kernels cannot run", f"the system forbids it ({os.strerror(ctypes.get_errno())})")
    _placed.append(memory)
    return [base + start + int.from_bytes(image[:8], "little") for start, image in zip(starts, images, strict=True)]


@cache
def _functions() -> list[int]:
    """The addresses of FUNCTIONS in this process."""
    return [ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value or 0 for name in FUNCTIONS]


@cache
def _library() -> ctypes.CDLL:
    """What the process itself is linked with, so the C library."""
    return ctypes.CDLL(None, use_errno=True)
