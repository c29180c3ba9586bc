"""A model in parts on several devices: each step goes through all of them, and what lies between two layers is handed on.

A part's runner is its backend's own; it knows of no other part. Where a GPU has too little memory after all, when it is loaded or later,
some of its layers go to the CPU: the KV cache moves with them, the step is computed again, and nothing else is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmcli.backends import backend as backends
from llmcli.backends.backend import Batch, Floats, Notify, Result, Runner
from llmcli.errors import OutOfMemory, Stopped
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache
from llmcli.offload.place import HOST, Placement, Share, fewer
from llmcli.offload.split import split
from llmcli.plan import Plan


@dataclass
class Part:
    plan: Plan
    runner: Runner
    outputs: bool
    """Whether it has rows of logits: the last part, and any whose taps have them."""


def load(
    plan: Plan,
    weights: Mapping[str, PackedTensor],
    cache: KVCache,
    placement: Placement,
    threads: int = 0,
    notify: Notify | None = None,
) -> PartedRunner:
    """A Runner of a model that is placed so. Each part cuts a step into pieces of its own. Raises UnsupportedModel where a device lacks
    an operation, DeviceError."""
    return PartedRunner(plan, weights, cache, placement, threads, notify)


class PartedRunner:
    """See backends.backend.Runner. The weights stay in memory: a layer may have to come back from a GPU."""

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, PackedTensor],
        cache: KVCache,
        placement: Placement,
        threads: int,
        notify: Notify | None,
    ) -> None:
        self.plan, self.placement = plan, placement
        self._weights, self._cache, self._threads = weights, cache, threads
        self._notify: Notify = notify or (lambda line: None)
        self._stopped = threading.Event()
        self._parts: list[Part] = []
        self._load()

    def run(self, batch: Batch) -> Result:
        self._stopped.clear()
        while True:
            self._load()
            try:
                return self._through(batch)
            except OutOfMemory as error:
                full = _alone(error)
            self._fewer(full)

    @property
    def compile_seconds(self) -> float:
        """How long kernels of its parts were compiled."""
        return sum(getattr(part.runner, "compile_seconds", 0.0) for part in self._parts)

    def stop(self) -> None:
        self._stopped.set()
        for part in self._parts:
            part.runner.stop()

    def close(self) -> None:
        self._close_parts()
        self._weights = {}

    def _through(self, batch: Batch) -> Result:
        """One step through all parts."""
        known: dict[str, Floats] = {}
        none = np.zeros(0, np.int32)
        for part in self._parts:
            if self._stopped.is_set():
                raise Stopped("stopped")
            given = {part.plan.buffers[number].name: known[part.plan.buffers[number].name] for number in part.plan.given}
            result = part.runner.run(replace(batch, given=given, outputs=batch.outputs if part.outputs else none))
            known |= result.taps
        result.taps = {self.plan.buffers[number].name: known[self.plan.buffers[number].name] for number in self.plan.taps}
        return result

    def _load(self) -> None:
        """Loads all parts where none are, with less on a GPU each time that it has too little memory."""
        while not self._parts:
            plans = split(self.plan, [share.layers for share in self.placement])
            try:
                for share, plan in zip(self.placement, plans, strict=True):
                    self._parts.append(self._part(share, plan))
                return
            except OutOfMemory as error:
                full = _alone(error)
            except BaseException:
                self._close_parts()
                raise
            self._fewer(full)

    def _part(self, share: Share, plan: Plan) -> Part:
        name, _, number = share.device.partition(":")
        module: Any = backends.get(name)
        backends.check(module, plan, self._weights)
        options = {"device": int(number)} if number else {}
        runner = module.load(plan, self._weights, self._cache, self._threads, share.tokens, self._notify, **options)
        return Part(plan, runner, any(buffer.rows == "outputs" for buffer in plan.buffers))

    def _fewer(self, error: OutOfMemory) -> None:
        """Places less on GPUs, or raises the error where nothing is there. No part is loaded then; the KV cache has everything."""
        for part in self._parts:
            store = getattr(part.runner, "store", None)
            if store is not None:
                self._cache.take_back(store)
        self._close_parts()
        before, layers = _on_gpus(self.placement), len(self.plan.cache)
        if not before:
            raise error
        self.placement = fewer(self.placement)
        after, tokens = _on_gpus(self.placement), max(share.tokens for share in self.placement)
        news = f"{after} instead of {before} of {layers} layers are on the GPU now"
        if after == before:
            news = f"it computes {tokens:,} tokens of a prompt at once now"
        self._notify(f"{error.what}: {error.why}; {news}")

    def _close_parts(self) -> None:
        for part in self._parts:
            part.runner.close()
        self._parts = []


def _on_gpus(placement: Placement) -> int:
    """Layers there."""
    return sum(share.layers for share in placement if share.device != HOST)


def _alone(error: OutOfMemory) -> OutOfMemory:
    """The error without the frames that it came through: they would keep a GPU's arrays, whose memory is needed now."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
