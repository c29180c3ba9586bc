"""What a step launches is what kernels take: models with every operation, each launch compiled to PTX with the types of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import SPECS, made

pytest.importorskip("numba_cuda", reason="kernels are compiled with numba-cuda: pip install 'llmcli[cuda]'")

from compiling import ptx

from llmcli.backends.cuda import driver
from llmcli.backends.cuda.buffers import Buffers
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.backends.cuda.lower import Lowering
from llmcli.backends.cuda.store import DeviceStore
from llmcli.backends.fuse import fuse
from llmcli.formats.format import integers

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")


class Memory:
    """Arrays of this machine in the place of a GPU's."""

    def array(self, count: int, dtype: Any) -> Any:
        return np.zeros(max(1, count), dtype)

    pinned = array

    def constant(self, values: Any) -> Any:
        return values

    def upload(self, pieces: Any, count: int, dtype: Any) -> Any:
        return np.concatenate(list(pieces)).view(dtype)


@pytest.mark.parametrize("name", SPECS)
def test_launches_compile(name: str) -> None:
    model = made(SPECS[name], "int4", "f16")
    memory: Any = Memory()
    buffers = Buffers(model.plan, memory, 16)
    buffers.grow(16)
    store = DeviceStore(memory, model.cache, tuple(range(len(model.plan.cache))))
    ops = fuse(model.plan, lambda weight: integers(model.weights[weight].format))
    lowering = Lowering(model.plan, ops, model.weights, store, buffers, memory)
    done = set()
    for rows in (1, 16):
        for launch in lowering.launches(rows, rows):
            types_of = driver.signature(launch.args)
            if (launch.kernel, types_of) not in done:
                done.add((launch.kernel, types_of))
                assert ".entry" in ptx(launch.kernel, types_of, (9, 0))
            dimensions = (launch.grid, 1, 1) if isinstance(launch.grid, int) else (*launch.grid, 1, 1)[:3]
            assert all(0 < size <= limit for size, limit in zip(dimensions, (2**31 - 1, 65535, 65535), strict=True))
            assert 32 <= launch.block <= 1024
    assert len(done) > 15
