"""Which kernels a plan needs on a GPU, found without one: the plan is lowered as a runner does it, over arrays that are nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cuda import driver, run
from llmcli.backends.cuda.objects import Key
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache
from llmcli.plan import Plan

NO_BYTES: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)


class Nowhere:
    """In the place of memory.Memory: arrays of a size and a type, without an address."""

    def array(self, count: int, dtype: Any) -> driver.Array:
        return driver.Array(0, max(1, count), dtype, None)

    pinned = array

    def upload(self, pieces: Iterable[Any], count: int, dtype: Any) -> driver.Array:
        return self.array(count, dtype)

    def constant(self, values: npt.NDArray[Any]) -> driver.Array:
        return self.array(values.size, values.dtype)


def kernels(plan: Plan, formats: Mapping[str, str], kv: str, most_tokens: int) -> list[Key]:
    """Names of the kernels that a runner of this plan launches, with the types of their arguments. formats: of each weight; kv: type of
    the cache; most_tokens: see run.load."""
    nowhere: Any = Nowhere()
    weights = {name: PackedTensor(formats[name], weight.shape, NO_BYTES) for name, weight in plan.weights.items()}
    lowering = run.lowered(plan, weights, KVCache(plan.cache, 1, kv), most_tokens, nowhere)
    launches = run.every_kernel(lowering, most_tokens)
    return list(dict.fromkeys((launch.kernel.reference, driver.signature(launch.args)) for launch in launches))
