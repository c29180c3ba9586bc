"""Kernels in Numba's simulator, with a quicker scheduler of a block's threads (blocks.py). See ../conftest.py."""

from __future__ import annotations

from numba import config

if config.ENABLE_CUDASIM:
    import blocks
    from numba.cuda.simulator import kernel

    kernel.BlockManager = blocks.Block
else:
    collect_ignore_glob = ["test_*.py"]
