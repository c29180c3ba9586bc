"""The reference backend: every operation in plain NumPy, float32, written to be read. The oracle of the others.

It is slow and takes whole steps of any size. A token's numbers do not depend on the other tokens of its step: each
operation treats every token by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmcli.backends.backend import Batch, Notify, Result
from llmcli.backends.reference.attention import attention, cache_write
from llmcli.backends.reference.elementwise import activation, add, clip, multiply, scale, scale_rows, softcap
from llmcli.backends.reference.embed import embed, position_add
from llmcli.backends.reference.experts import experts, route
from llmcli.backends.reference.linear import linear, unpack
from llmcli.backends.reference.norm import norm
from llmcli.backends.reference.rope import rope
from llmcli.backends.reference.select import select_rows, top
from llmcli.backends.reference.step import Step
from llmcli.errors import NumericalError, Stopped
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache
from llmcli.plan import Plan, Slot

# Each takes its operands, then its weights, then its parameters by name, and returns what `out` becomes.
PLAIN: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (norm, linear, activation, multiply, add, scale, scale_rows, softcap, clip, route, experts, top)
}
# These take the Step before their operands.
PLACED: dict[str, Callable[..., Any]] = {f.__name__: f for f in (embed, position_add, rope, cache_write, attention, select_rows)}


def checksum(notify: Notify | None = None) -> None:
    """See backends.backend: NumPy does."""
    return None


def supports(op: str, format: str) -> str:
    """'' when this backend computes the operation on weights of the format, else the reason why not."""
    if op not in PLAIN and op not in PLACED:
        return "the reference backend does not have it"
    return "" if not format or format in formats.names() else f"there is no format {format}"


def load(
    plan: Plan,
    weights: Mapping[str, PackedTensor],
    cache: KVCache,
    threads: int = 0,
    most_tokens: int = 0,
    notify: Notify | None = None,
) -> ReferenceRunner:
    """A Runner. Nothing is compiled, and threads and most_tokens mean nothing here."""
    return ReferenceRunner(plan, weights, cache)


class ReferenceRunner:
    """See backends.backend.Runner."""

    def __init__(self, plan: Plan, weights: Mapping[str, PackedTensor], cache: KVCache) -> None:
        self.plan = plan
        self.cache = cache
        self.weights = {name: _operand(weights[name]) for name in plan.weights}
        self._stop = threading.Event()

    def run(self, batch: Batch) -> Result:
        step = Step(batch, self.cache)
        rows = {"tokens": len(batch.tokens), "outputs": len(batch.outputs)}
        buffers: list[Any] = [np.zeros((rows[b.rows], b.width), np.int32 if b.dtype == "i32" else np.float32) for b in self.plan.buffers]

        for number in self.plan.given:
            buffers[number][:] = batch.given[self.plan.buffers[number].name]

        def view(slot: Slot) -> Any:
            return buffers[slot.buffer][:, slot.start : slot.start + slot.width]

        found: Any = None
        for op in self.plan.ops:
            if self._stop.is_set():
                self._stop.clear()
                raise Stopped("stopped")
            operands = [view(slot) for slot in op.inputs] + [name and self.weights[name] for name in op.weights]
            try:
                with np.errstate(all="ignore"):  # norms and cache writes report what matters
                    found = PLAIN[op.kind](*operands, **op.params) if op.kind in PLAIN else PLACED[op.kind](step, *operands, **op.params)
            except NumericalError as error:
                raise NumericalError(error.what, f"at {op.label}, {error.why}", error.todo) from None
            for slot, value in zip(op.out, found if isinstance(found, tuple) else (found,), strict=False):
                view(slot)[...] = value
        # A part of a model may end before its logits.
        ids, values, logsumexp, entropy = found if self.plan.ops[-1].kind == "top" else top(np.zeros((0, self.plan.vocab), np.float32))
        taps = {self.plan.buffers[number].name: buffers[number] for number in self.plan.taps}
        return Result(buffers[self.plan.logits], ids, values, logsumexp, entropy, taps)

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self.weights = {}


def _operand(tensor: PackedTensor) -> Any:
    """A weight as the operations take it: an array, a Matrix, or a list of Matrix for experts."""
    if tensor.format == "vector":
        return tensor.vector()
    matrices = unpack(tensor)
    return matrices if len(tensor.shape) == 3 else matrices[0]
