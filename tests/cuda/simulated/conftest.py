"""Kernels in Numba's simulator, with a quicker scheduler of a block's threads (blocks.py), or on a real GPU. See ../conftest.py."""

from __future__ import annotations

import contextlib
import importlib
import os

ON_GPU = bool(os.environ.get("LLMCLI_TEST_ON_GPU"))

if ON_GPU:
    with contextlib.suppress(ImportError):  # as in compile.py: before numba.cuda is imported
        importlib.import_module("_numba_cuda_redirector")

import transfers  # noqa: E402
from numba import config  # noqa: E402

from llmcli.backends.cuda import kernels  # noqa: E402

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
