"""Kernels in Numba's simulator, with a quicker scheduler of a block's threads (blocks.py), or on a real GPU. See ../conftest.py."""

from __future__ import annotations

import os

import transfers
from numba import config

from llmcli.backends.cuda import kernels

ON_GPU = bool(os.environ.get("LLMCLI_TEST_ON_GPU"))

if config.ENABLE_CUDASIM:
    import blocks
    from numba.cuda.simulator import kernel

    kernel.BlockManager = blocks.Block
if ON_GPU:
    kernels.COMPILING = True  # by Numba in this process: tests have kernels of their own
if config.ENABLE_CUDASIM or ON_GPU:
    transfers.install()
else:
    collect_ignore_glob = ["test_*.py"]
