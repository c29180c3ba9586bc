"""What a step launches is what kernels take: models with every operation, each launch compiled to PTX with the types of its arguments."""

from __future__ import annotations

import pytest
from devices import SPECS, lowered, made

pytest.importorskip("numba_cuda", reason="kernels are compiled with numba-cuda: pip install 'llmcli[cuda]'")

from compiling import ptx

from llmcli.backends.cuda import driver
from llmcli.backends.cuda.kernels.platform import SIMULATED

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")


@pytest.mark.parametrize("name", SPECS)
def test_launches_compile(name: str) -> None:
    lowering = lowered(made(SPECS[name], "int4", "f16"), 16)
    done = set()
    for rows in (1, 16):
        for launch in lowering.launches(rows, rows):
            types_of = driver.signature(launch.args)
            if (launch.kernel, types_of) not in done:
                done.add((launch.kernel, types_of))
                assert ".entry" in ptx(launch.kernel, types_of)
            dimensions = (launch.grid, 1, 1) if isinstance(launch.grid, int) else (*launch.grid, 1, 1)[:3]
            assert all(0 < size <= limit for size, limit in zip(dimensions, (2**31 - 1, 65535, 65535), strict=True))
            assert 32 <= launch.block <= 1024
    assert len(done) > 15
