"""What the operations that look beyond their operands need to know: the step's batch and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch
from llmcli.kv import KVCache

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    batch: Batch
    cache: KVCache
