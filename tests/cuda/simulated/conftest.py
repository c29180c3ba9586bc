"""Kernels in Numba's simulator, with a quicker scheduler of a block's threads (blocks.py); and on a real GPU where one is: there all of
these tests carry the marker `gpu`. See ../conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import transfers
from numba import config

from llmcli.backends.cuda import device
from llmcli.errors import LlmError


def _usable() -> bool:
    try:
        return bool(device.usable())
    except LlmError:
        return False


if config.ENABLE_CUDASIM:
    import blocks
    from numba.cuda.simulator import kernel

    kernel.BlockManager = blocks.Block
    transfers.install()
elif _usable():
    transfers.install()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not config.ENABLE_CUDASIM:
            item.add_marker(pytest.mark.gpu)
