"""The CUDA backend: a plan, or a part of one, on an NVIDIA GPU, by kernels that numba-cuda has compiled (docs/cuda.md).

Weights, activations and the KV cache of its layers are on the GPU; a step's tokens go there, its results come back. The step is
recorded once for each number of rows (by powers of two) and then started with one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from llmcli.backends.backend import Batch, Notify, Result
from llmcli.backends.cuda import graph, objects
from llmcli.backends.cuda.buffers import Buffers, height
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.backends.cuda.kernels.step import words
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.lower import QUANTIZERS, Lowering, supports
from llmcli.backends.cuda.memory import Memory
from llmcli.backends.cuda.store import DeviceStore
from llmcli.backends.fuse import fuse
from llmcli.errors import NumericalError, Stopped
from llmcli.formats.format import PackedTensor, integers
from llmcli.kv import KVCache
from llmcli.plan import Plan

__all__ = ["CudaRunner", "checksum", "load", "supports"]


def checksum(notify: Notify | None = None) -> None:
    """See backends.backend: the CPU does it."""
    return None


def load(
    plan: Plan,
    weights: Mapping[str, PackedTensor],
    cache: KVCache,
    threads: int = 0,
    most_tokens: int = 256,
    notify: Notify | None = None,
    device: int = 0,
) -> CudaRunner:
    """A Runner on GPU number `device`, which was found usable (device.py). most_tokens: what is computed at once, longer steps are cut.
    Raises OutOfMemory, DeviceError."""
    return CudaRunner(plan, weights, cache, most_tokens, device, notify)


def lowered(plan: Plan, weights: Mapping[str, PackedTensor], cache: KVCache, most_tokens: int, memory: Memory) -> Lowering:
    """The plan on a GPU: its weights, its layers' part of the cache and room for a step are there."""
    formats = {name: weights[name].format for name in plan.weights}
    ops = fuse(plan, lambda name: integers(formats[name]), turns=True, quantizers=QUANTIZERS)
    layers = tuple(sorted({op.integer("layer") for op in plan.ops if op.kind == "cache_write"}))
    buffers, store = Buffers(plan, memory, most_tokens), DeviceStore(memory, cache, layers)
    return Lowering(plan, ops, weights, store, buffers, memory)


def every_kernel(lowering: Lowering, most_tokens: int) -> Iterator[Launch]:
    """Launches with every kernel that a step may need: they differ for few tokens and for more."""
    for rows in dict.fromkeys(min(height(most_tokens), rows) for rows in (1, 2, 4, 8, 16, height(most_tokens))):
        yield from lowering.launches(rows, rows)


class CudaRunner:
    """See backends.backend.Runner."""

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, PackedTensor],
        cache: KVCache,
        most_tokens: int,
        device: int,
        notify: Notify | None,
    ) -> None:
        self.plan, self.cache = plan, cache
        self._memory, self._most = Memory(device), most_tokens
        with self._memory.errors():
            self._lowering = lowered(plan, weights, cache, most_tokens, self._memory)
            self._memory.uploaded()
        self._buffers, self.store = self._lowering.buffers, self._lowering.store
        cache.keep_in(self.store)
        before = objects.compile_seconds()
        self._memory.prepare(every_kernel(self._lowering, most_tokens), notify)
        self.compile_seconds = objects.compile_seconds() - before
        self._steps: dict[tuple[int, int], Step] = {}
        self._stopped = threading.Event()

    def run(self, batch: Batch) -> Result:
        self._stopped.clear()
        count = len(batch.tokens)
        if count <= self._most:
            return self._piece(batch, 0)
        parts = [_copied(self._piece(batch, start)) for start in range(0, count, self._most)]

        def whole(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        taps = {name: np.concatenate([part.taps[name] for part in parts]) for name in parts[0].taps}
        return Result(whole("logits"), whole("top_ids"), whole("top_logits"), whole("logsumexp"), whole("entropy"), taps)

    @property
    def recorded(self) -> int:
        """How many kinds of steps are started with one call."""
        return sum(step.recorded for step in self._steps.values())

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._steps.clear()
        del self._lowering, self._buffers

    def _piece(self, batch: Batch, start: int) -> Result:
        """Computes the tokens from `start` on, as many as are computed at once."""
        if self._stopped.is_set():
            raise Stopped("stopped")
        stop = min(start + self._most, len(batch.tokens))
        first, last = np.searchsorted(batch.outputs, (start, stop))
        tokens, outputs = stop - start, int(last - first)
        buffers = self._buffers
        with self._memory.errors():
            if outputs > buffers.outputs:
                self._steps.clear()  # first of all: no recorded step outlives its buffers
                buffers.grow(outputs)
            shape = height(tokens), height(outputs)
            buffers.fill(batch, start, stop, batch.outputs[first:last] - start, shape[0])
            if shape not in self._steps:
                self._steps[shape] = Step(self._memory, self._work(*shape))
            self._steps[shape]()
            self._memory.stream.synchronize()
        self._raise_fault(start)
        found = {name: array.reshape(buffers.outputs, -1)[:outputs] for name, array in buffers.host_results.items()}
        taps = {self.plan.buffers[n].name: buffers.rows(n, outputs if self._of_outputs(n) else tokens) for n in self.plan.taps}
        stats = found["top_stats"]
        return Result(buffers.rows(self.plan.logits, outputs), found["top_ids"], found["top_values"], stats[:, 0], stats[:, 1], taps)

    def _of_outputs(self, buffer: int) -> bool:
        return self.plan.buffers[buffer].rows == "outputs"

    def _work(self, tokens: int, outputs: int) -> Callable[[], None]:
        """What a step of up to so many rows is: copies up, launches, copies back."""
        buffers, stream = self._buffers, self._memory.stream
        count = words(tokens, tokens, buffers.width)
        up = [(buffers.step[:count], buffers.host_step[:count]), (buffers.fault, buffers.no_fault)]
        back = [(buffers.fault, buffers.host_fault)]
        for number in self.plan.given:
            size = tokens * buffers.strides[number]
            up.append((buffers.arrays[number][:size], buffers.host[number][:size]))
        shown = {*self.plan.taps, *((self.plan.logits,) if self._of_outputs(self.plan.logits) else ())}
        for number in shown:
            size = (outputs if self._of_outputs(number) else tokens) * buffers.strides[number]
            back += [(buffers.arrays[number][:size], buffers.host[number][:size])] if size else []
        if outputs and self.plan.ops[-1].kind == "top":
            for name, array in buffers.results.items():
                size = outputs * (array.size // buffers.outputs)
                back.append((array[:size], buffers.host_results[name][:size]))
        launches = self._lowering.launches(tokens, outputs)

        def work() -> None:
            for target, source in up:
                target.copy_to_device(source, stream=stream)
            for launch in launches:
                launch.kernel[launch.grid, launch.block, stream](*launch.args)
            for target, result in back:
                target.copy_to_host(result, stream=stream)

        return work

    def _raise_fault(self, start: int) -> None:
        """Raises what a kernel has left in the fault word (kernels/faults.py)."""
        word = int(self._buffers.host_fault[0])
        if not word:
            return
        op, token = self.plan.ops[word - 1 >> 32], start + (word - 1 & 0xFFFFFFFF)
        where = f"at {op.label}, token {token} of the step"
        if op.kind == "cache_write" and self.cache.dtype == "f16":
            raise NumericalError("a key or value beyond 65,504, NaN or infinity", where, "Use --kv f32")
        raise NumericalError("NaN or infinity", where)


class Step:
    """The work of a step: done call by call the first time; then recorded, where that is possible."""

    def __init__(self, memory: Memory, work: Callable[[], None]) -> None:
        self._memory, self._work = memory, work
        self._started = 0
        self._replay: Callable[[], None] | None = None

    @property
    def recorded(self) -> bool:
        return self._replay is not None

    def __call__(self) -> None:
        self._started += 1
        if self._started == 2 and not SIMULATED:
            self._replay = graph.capture(self._memory.stream, self._work)
        (self._replay or self._work)()


def _copied(result: Result) -> Result:
    """The same, not as views that the next step overwrites."""
    taps = {name: rows.copy() for name, rows in result.taps.items()}
    logits, ids, values = result.logits.copy(), result.top_ids.copy(), result.top_logits.copy()
    return Result(logits, ids, values, result.logsumexp.copy(), result.entropy.copy(), taps)
