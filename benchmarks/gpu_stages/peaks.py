"""What the GPU can do at most: copying in its memory (bytes read and written), and the bf16 matrix product where PyTorch is installed."""

from __future__ import annotations

import importlib.util
import statistics
from functools import partial
from typing import Any

import numpy as np
from gpu_stages.stage import Stage, seconds

COPY, COPY_DRY = 4 << 30, 1 << 12
"""Bytes."""
SIDE = 8192


def run(stage: Stage) -> None:
    from gpu_stages.randoms import Source

    from llmcli.backends.cuda.memory import Memory

    memory = Memory(0)
    size = COPY_DRY if stage.dry else COPY
    source, target = (memory.array(size, np.uint8) for _ in range(2))
    with memory.errors():
        Source(memory, stage.dry).fill(source)
    took = seconds(memory, partial(target.copy_to_device, source, stream=memory.stream), stage.dry, record=False)
    stage.say("copy", bytes_per_s=2 * size / took, bytes=2 * size)
    del source, target
    if importlib.util.find_spec("torch") is None or stage.dry:
        stage.say("left out", item="bf16 matrix product", needs="torch")
        return
    stage.say("bf16", flop_per_s=matrix_rate())


def matrix_rate() -> float:
    """Operations a second of a large product of random bf16 matrices."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def lasts(count: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(count):
            out: Any = a @ b
        last.record()
        last.synchronize()
        del out
        return float(first.elapsed_time(last)) / 1000 / count

    lasts(3)
    return 2 * SIDE**3 / statistics.median(lasts(10) for _ in range(5))
