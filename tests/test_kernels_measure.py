"""The kernels that measure the machine do what they are said to do: nothing is left out that their figures count."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from kernel_calls import call, kernel, only_x86, run_as
from llmcli.backends.cpu import measure
from llmcli.backends.cpu.records import CLOCK, LIMIT, READ, THREAD_BYTES, pack


def test_read_adds_every_byte() -> None:
    data = np.random.default_rng(0).integers(-(2**31), 2**31, 4 * 2048, dtype=np.int64).astype(np.int32)
    out = np.zeros(THREAD_BYTES // 4, np.int32)
    args = pack(READ, header=0, data=data.ctypes.data, chunk_bytes=8192, out=out.ctypes.data)
    for chunk in range(4):
        call(kernel("measure.read"), args, [chunk])
        part = data[chunk * 2048 :][:2048].reshape(-1, 16)
        assert (out[:16] == part.sum(0, dtype=np.int32)).all()
    assert not out[16:].any()


@pytest.mark.parametrize("count", [4, 16])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_every_chain_of_products_counts(count: int, steps: int) -> None:
    out = np.zeros(THREAD_BYTES // 4, np.int32)
    args = pack(LIMIT, header=0, steps=steps, out=out.ctypes.data)
    call(kernel("measure.dot", count), args, [0])
    sums = np.arange(1, count + 1, dtype=np.int64)
    for _ in range(steps):
        sums += 3 * sum(sums >> shift & 255 for shift in (0, 8, 16, 24))
    assert (out[:16] == np.bitwise_xor.reduce(sums)).all()
    call(kernel("measure.pairs", count), args, [0])
    sums = np.arange(1, count + 1, dtype=np.int64)
    for _ in range(steps):
        sums += 5 * (sums << 48 >> 48) + 3 * (sums << 32 >> 48)
        sums = sums << 32 >> 32
    assert (out[:16] == np.bitwise_xor.reduce(sums)).all()
    call(kernel("measure.fma", count), args, [0])
    values = np.arange(count, dtype=np.float32)
    for _ in range(steps):
        values = values * np.float32(0.5) + np.float32(1)
    assert (out[:16] == np.bitwise_xor.reduce(values.view(np.int32))).all()


def test_they_call_nothing_and_keep_vectors_in_registers() -> None:
    for name in ("measure.dot", "measure.pairs", "measure.fma"):
        made = kernel(name, measure.CHAINS)
        assert made.calls() == []
        assert not re.search(r"[xyz]mm\d+, -?\d*\(%rsp\)", made.assembly)
    assert kernel("measure.read").calls() == []


def test_the_clock() -> None:
    noted = np.zeros(2, np.int64)
    args = pack(CLOCK, header=0, clock=time.CLOCK_MONOTONIC, out=noted.ctypes.data)
    before = time.monotonic_ns()
    call(kernel("measure.clock"), args, [0])
    assert before <= noted[0] * 10**9 + noted[1] <= time.monotonic_ns()


@only_x86
@pytest.mark.parametrize("cpu", ["haswell", "nehalem"])
def test_on_other_cpus(cpu: str) -> None:
    run_as(cpu, "", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", __file__, "-k", "products or read or registers", "-x")


def test_limits_of_this_machine() -> None:
    found = measure.limits(2, 1 << 20)
    assert found.threads == 2 and found.model_bytes == 1 << 20
    assert found.memory_read > 1e8 and found.model_read > 1e8
    assert found.int8_operations > 1e9 and found.int16_operations > 1e9 and found.f32_operations > 1e9
