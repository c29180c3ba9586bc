"""Kernels where they are only started: by name, from code that another process has compiled. Nothing here imports Numba.

A kernel's name says how to get it again: ("select.select", None) is a function of a module, ("decode.integers", ("int4", 1, False)) is what
a function marked `made` gives for these parameters; device functions among them stand as such names too.
"""

from __future__ import annotations

import functools

from llmcli.errors import InternalError


class Kernel:
    """Started as k[grid, block, stream](arguments), like Numba's; the stream is the driver's (driver.py)."""

    reference = None

    def __init__(self, function):
        _name(self, function)

    def __getitem__(self, configuration):
        grid, block, stream = configuration
        return functools.partial(stream.start, self.reference, grid, block)


def _name(thing, function):
    if "<locals>" not in function.__qualname__:
        thing.reference = (f"{function.__module__.rpartition('.')[2]}.{function.__name__}", None)


def kernel(function):
    return Kernel(function)


def kernel_of(registers):
    return Kernel


def device(function):
    _name(function, function)
    return function


def made(factory):
    """Marks a function that makes a kernel or a device function from numbers, words and device functions. It is called once for each."""
    name = f"{factory.__module__.rpartition('.')[2]}.{factory.__name__}"

    @functools.cache
    def make(*parameters):
        found = factory(*parameters)
        found.reference = name, tuple(p.reference if callable(p) else p for p in parameters)
        return found

    return make


def _elsewhere(*arguments):
    raise InternalError("an instruction of the GPU was called here")


def copies_wait_but(groups):
    return _elsewhere


cuda = None
bits_float = copies_commit = copies_wait = copy16 = dp4a = float_bits = float_to_half = fma = half_to_float = lane_max = lane_sum = (
    _elsewhere
)
load2 = load4 = load8 = load16 = mma_f16 = mma_s8 = nearest = permute = product = quotient = _elsewhere
shared4 = shared8 = shared16 = shared_floats = store4 = word_max = word_sum = _elsewhere
