"""Plain twins of the instructions in ptx.py, for Numba's simulator, where each thread of a block is a Python thread.

Warp operations exchange their values through a list that belongs to the block, with a barrier between writing and reading.
Asynchronous copies are carried out when they are waited for, no earlier: so a missing wait shows.
"""

from __future__ import annotations

import functools
import struct
import sys
import threading
from typing import Any

import numpy as np
from numba import cuda as simulator
from numba.cuda.simulator import kernel as simulated

kernel = simulator.jit


made = functools.cache


def kernel_of(registers):
    return simulator.jit


class _Shared:
    """Shared memory: one array for each line that asks for one, in each block, full of bytes 255: NaN, and -1."""

    @staticmethod
    def array(shape, dtype, alignment=None):
        caller = sys._getframe(1)
        arrays = _thread()._manager.__dict__.setdefault("shared", {})
        fresh = np.full(shape * np.dtype(dtype).itemsize, 255, np.uint8).view(dtype)
        return arrays.setdefault((caller.f_code.co_filename, caller.f_lineno), fresh)


class _Context:
    """`cuda` as code within a kernel sees it, in whichever module that code is."""

    shared = _Shared

    def __getattr__(self, name: str) -> Any:
        return getattr(simulated._get_kernel_context(), name)


cuda = _Context()


def device(function):
    return function


# --- Instructions of one thread


def _word(value):
    return int(value) & 0xFFFFFFFF


def _bytes(word):
    return struct.unpack("4b", struct.pack("<I", _word(word)))


def _i32(value):
    """The low 32 bits as a signed number."""
    return np.int32(((int(value) & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000)


def dp4a(a, b, c):
    return _i32(int(c) + sum(x * y for x, y in zip(_bytes(a), _bytes(b), strict=True)))


def permute(a, b, selector):
    assert not _word(selector) & 0x8888, "bit 3 of a selector copies a sign"
    found = struct.pack("<II", _word(a), _word(b))
    chosen = bytes(found[_word(selector) >> 4 * i & 7] for i in range(4))
    return _i32(int.from_bytes(chosen, "little"))


def load16(array, at):
    assert at % 16 == 0 and 0 <= at <= array.size - 16, at
    return tuple(np.int32(word) for word in struct.unpack("<4i", bytes(array[at : at + 16]._item)))


def load8(array, at):
    assert at % 8 == 0 and 0 <= at <= array.size - 8, at
    return tuple(np.int32(word) for word in struct.unpack("<2i", bytes(array[at : at + 8]._item)))


def load4(array, at):
    assert at % 4 == 0 and 0 <= at <= array.size - 4, at
    return np.int32(struct.unpack("<i", bytes(array[at : at + 4]._item))[0])


def load2(array, at):
    assert at % 2 == 0 and 0 <= at <= array.size - 2, at
    return np.int32(struct.unpack("<H", bytes(array[at : at + 2]._item))[0])


def store4(array, at, word):
    assert at % 4 == 0 and 0 <= at <= array.size - 4, at
    array[at : at + 4] = np.frombuffer(struct.pack("<I", _word(word)), np.uint8)


def shared4(words, at):
    assert at >= 0
    return words[at]


def shared8(words, at):
    assert at % 2 == 0
    return words[at], words[at + 1]


def shared16(words, at):
    assert at % 4 == 0
    return words[at], words[at + 1], words[at + 2], words[at + 3]


def copy16(words, at, array, start):
    assert at % 4 == 0
    _thread().__dict__.setdefault("copies", [[]])[-1].append((words, int(at), load16(array, start)))


def copies_commit():
    _thread().__dict__.setdefault("copies", [[]]).append([])


def _wait(under_way):
    *closed, current = _thread().__dict__.setdefault("copies", [[]])
    done = max(len(closed) - under_way, 0)
    for words, at, values in (copy for group in closed[:done] for copy in group):
        words[at : at + 4] = values
    _thread().copies = [*closed[done:], current]


def copies_wait():
    _wait(0)


def copies_wait_but(groups):
    return lambda: _wait(groups)


def fma(a, b, c):
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def product(a, b):
    return np.float32(a) * np.float32(b)


def quotient(a, b):
    with np.errstate(all="ignore"):
        return np.float32(a) / np.float32(b)


def nearest(x):
    return np.int32(np.rint(x))


def half_to_float(bits):
    return np.float32(np.uint16(bits).view(np.float16))


def float_to_half(x):
    with np.errstate(over="ignore"):
        return np.int32(np.float16(x).view(np.uint16))


def bits_float(bits):
    return _i32(bits).view(np.float32)


def float_bits(x):
    return np.float32(x).view(np.int32)


# --- Instructions of a warp


def _thread() -> Any:
    return threading.current_thread()


class _Value:
    """What one lane brings; the first lane's keeps what the warp makes of all of them."""

    def __init__(self, value):
        self.value, self.results = value, None


def _together(value, operation):
    """This lane's part of what operation(every lane's value, in order) gives. Two lists in turn: whoever writes to one has passed the
    barrier behind which the other was read."""
    thread = _thread()
    manager = thread._manager
    turn = thread.turn = getattr(thread, "turn", 1) ^ 1
    threads = int(np.prod(manager._block_dim))
    values = manager.__dict__.setdefault(f"exchange{turn}", [None] * threads)
    values[thread.thread_id] = _Value(value)
    thread.syncthreads()
    first = thread.thread_id // 32 * 32
    lanes = values[first : first + 32]
    if lanes[0].results is None:
        lanes[0].results = operation([lane.value for lane in lanes])
    return lanes[0].results[thread.thread_id % 32]


def _tree(operation):
    """As lanes do it that exchange with lane ^ 16, ^ 8, ^ 4, ^ 2, ^ 1."""

    def reduce(values):
        for step in (16, 8, 4, 2, 1):
            values = [operation(values[lane], values[lane ^ step]) for lane in range(32)]
        return values

    return reduce


_sum, _max = _tree(lambda a, b: a + b), _tree(lambda a, b: a if a > b else b)


def lane_sum(value):
    return _together(value, _sum)


def lane_max(value):
    return _together(value, _max)


word_sum, word_max = lane_sum, lane_max


def _products(lanes):
    """Lane 4 g + q holds A's rows g (a0, a2) and g + 8 (a1, a3) at columns 4 q .. + 3 (a0, a1) and 16 + 4 q .. + 3 (a2, a3), B's
    column g at the same rows (b0, b1), and gets the product's rows g (two columns from 2 q on) and g + 8 (the same columns)."""
    a, b = np.empty((2, 8, 2, 4, 4), np.int64), np.empty((8, 2, 4, 4), np.int64)  # [half, row, half, quad, byte], [column, half, ...]
    words = np.array(lanes, np.int32).view(np.int8).reshape(8, 4, 6, 4)
    for i in range(4):
        a[i % 2, :, i // 2] = words[:, :, i]
    for i in range(2):
        b[:, i] = words[:, :, 4 + i]
    both = (a.reshape(16, 32) @ b.reshape(8, 32).T).reshape(2, 8, 4, 2)  # [half, row, quad, column]
    return both.transpose(1, 2, 0, 3).reshape(32, 4).tolist()


def mma_s8(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    sums = _together((a0, a1, a2, a3, b0, b1), _products)
    return tuple(_i32(int(c) + s) for c, s in zip((c0, c1, c2, c3), sums, strict=True))


def _half_products(lanes):
    """As _products, with A's columns 2 q, 2 q + 1 (a0, a1) and 8 + 2 q, 9 + 2 q (a2, a3). Products of f16 and their sums are exact in
    f64, or nearly; the GPU's are sums in f32 in an order of its own."""
    a, b = np.empty((2, 8, 2, 4, 2)), np.empty((8, 2, 4, 2))  # [half, row, half, quad, number], [column, half, ...]
    halves = np.array(lanes, np.int32).view(np.float16).reshape(8, 4, 6, 2)
    for i in range(4):
        a[i % 2, :, i // 2] = halves[:, :, i]
    for i in range(2):
        b[:, i] = halves[:, :, 4 + i]
    both = (a.reshape(16, 1, 16) * b.reshape(1, 8, 16)).sum(-1).reshape(2, 8, 4, 2)  # [half, row, quad, column]
    return both.transpose(1, 2, 0, 3).reshape(32, 4).tolist()


def mma_f16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    sums = _together((a0, a1, a2, a3, b0, b1), _half_products)
    return tuple(np.float32(float(c) + s) for c, s in zip((c0, c1, c2, c3), sums, strict=True))


# --- Four floats


def shared_floats(floats, at):
    assert at % 4 == 0 and 0 <= at <= floats.size - 4, at
    return floats[at], floats[at + 1], floats[at + 2], floats[at + 3]
