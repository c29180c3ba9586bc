"""One kernel launch, with everything that it needs: made once, started in every step or captured in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """kernel: a compiled kernel (kernels.platform.kernel); grid: blocks, as a number or (x, y); block: threads in each; args: flat
    device arrays and numbers. Run with launch.kernel[launch.grid, launch.block, stream](*launch.args)."""

    kernel: Any
    grid: int | tuple[int, ...]
    block: int
    args: tuple[Any, ...]
