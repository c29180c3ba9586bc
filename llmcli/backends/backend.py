"""What a backend is: a folder with `run.py` that loads a plan and computes steps.

`run.py` defines
    supports(op: str, format: str) -> str    '' when this backend computes operation `op` on weights of `format`
                                             ('' for operations without weights), else the reason why not
    load(plan, weights, cache, threads, most_tokens, notify) -> Runner
                                             threads 0: as many as the machine has for us; most_tokens: computed at once
    checksum(notify) -> function or None     (address, size in bytes, number of the first word) -> the checksum of a part of a packed
                                             file as it is defined there; None where NumPy is as fast, or nothing is ready
Callers check tokens, positions and rows before a step (`Batch.check`): kernels never do.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from llmcli.errors import InputError, InternalError, UnsupportedModel, UsageError
from llmcli.formats.format import PackedTensor
from llmcli.kv import KVCache, Sequence
from llmcli.plan import Plan

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass
class Batch:
    """One step's input. The sequences already have room for the new positions (Sequence.extend)."""

    tokens: Ints
    """[T] token ids."""
    positions: Ints
    """[T] position of each token in its sequence."""
    sequences: tuple[Sequence, ...]
    owners: Ints
    """[T] index into `sequences` for each token."""
    outputs: Ints
    """[R] the rows (0 .. T-1, ascending) whose logits are wanted."""
    given: Mapping[str, Floats] = field(default_factory=dict)
    """[T, width] of each buffer of `plan.given`, by its name."""

    @staticmethod
    def of(sequence: Sequence, tokens: Ints, outputs: str = "last") -> Batch:
        """The tokens that follow in one sequence, which is extended for them. outputs: 'last', 'all' or 'none'."""
        count = len(tokens)
        start = sequence.length
        sequence.extend(count)
        rows = {"last": np.arange(count - 1, count), "all": np.arange(count), "none": np.arange(0)}[outputs]
        positions = np.arange(start, start + count, dtype=np.int32)
        owners = np.zeros(count, np.int32)
        return Batch(np.ascontiguousarray(tokens, np.int32), positions, (sequence,), owners, rows.astype(np.int32))

    @staticmethod
    def together(sequences: Several[Sequence], tokens: Ints) -> Batch:
        """The next token of each of several sequences, which are extended for it; logits of all. Raises OutOfMemory, and the
        sequences are then as they were."""
        room: list[Sequence] = []
        try:
            for sequence in sequences:
                sequence.extend(1)
                room.append(sequence)
        except BaseException:
            for sequence in room:
                sequence.truncate(sequence.length - 1)
            raise
        every = np.arange(len(room), dtype=np.int32)
        positions = np.array([sequence.length - 1 for sequence in room], np.int32)
        return Batch(np.ascontiguousarray(tokens, np.int32), positions, tuple(room), every, every)

    def check(self, plan: Plan) -> None:
        """Raises InternalError unless every position and row is in range, and InputError for an unknown token (not all
        tokenizers fit their models): kernels trust them."""
        count = len(self.tokens)
        if not (len(self.positions) == len(self.owners) == count > 0):
            raise InternalError("a step needs as many positions and owners as tokens, and at least one")
        if _largest(self.tokens) >= plan.vocab:
            unknown = int(self.tokens[(self.tokens < 0) | (self.tokens >= plan.vocab)][0])
            raise InputError(f"the model does not know token {unknown}", f"it knows those from 0 to {plan.vocab - 1:,}")
        if _largest(self.owners) >= len(self.sequences):
            raise InternalError("a token belongs to no sequence")
        room = np.array([min(s.length, plan.context) for s in self.sequences], np.uint32)
        if (self.positions.view(np.uint32) >= room[self.owners]).any():
            raise InternalError("a position is outside its sequence or the context")
        if len(self.outputs) and (_largest(self.outputs) >= count or (self.outputs[1:] <= self.outputs[:-1]).any()):
            raise InternalError("the output rows are not rows of the step in ascending order")

    def undo(self) -> None:
        """After a step that failed: every sequence is as long as before it."""
        for number, sequence in enumerate(self.sequences):
            own = self.positions[self.owners == number]
            if len(own):
                sequence.truncate(min(int(own.min()), sequence.length))


def _largest(numbers: Ints) -> int:
    """The largest number; more than any i32 where one is negative. A step of one token should not wait for two passes."""
    return int(numbers.view(np.uint32).max())


@dataclass
class Result:
    """One step's output; the arrays are views that the next step overwrites."""

    logits: Floats
    """[R, V]."""
    top_ids: Ints
    """[R, min(256, V)] the largest logits' ids, largest first; equal logits by ascending id."""
    top_logits: Floats
    """[R, min(256, V)]."""
    logsumexp: npt.NDArray[np.float64]
    """[R] natural log of the sum of exp(logits)."""
    entropy: npt.NDArray[np.float64]
    """[R] entropy of softmax(logits) in nats."""
    taps: dict[str, Floats] = field(default_factory=dict)
    """Rows of the buffers of `plan.taps`, by their names: [T, width], or [R, width] of a buffer for output rows."""


class Runner(Protocol):
    """A loaded model. Not safe for two threads at once. One that had to compile kernels has `compile_seconds`."""

    def run(self, batch: Batch) -> Result:
        """Computes one step of any number of tokens and fills the cache. Raises NumericalError when a norm or a
        cache write met NaN or infinity, Stopped when `stop` was called."""
        ...

    def stop(self) -> None:
        """Asks the running step to end soon; callable from any thread."""
        ...

    def close(self) -> None:
        """Ends the threads and drops the weights."""
        ...


Notify = Callable[[str], None]
"""Where news for the user go, a line of text each: kernels that have to be compiled, a cache that cannot be used."""


class BackendModule(Protocol):
    def supports(self, op: str, format: str) -> str: ...

    def checksum(self, notify: Notify | None = None) -> Callable[[int, int, int], int] | None: ...

    def load(
        self,
        plan: Plan,
        weights: Mapping[str, PackedTensor],
        cache: KVCache,
        threads: int = 0,
        most_tokens: int = 256,
        notify: Notify | None = None,
    ) -> Runner: ...


def get(name: str) -> BackendModule:
    """The backend in folder `name`: 'reference', 'cpu' or 'cuda'. Raises UsageError for another name."""
    known = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)
    if name not in known:
        raise UsageError(f"no device {name!r}", f"here is auto, {', '.join(known)}", "Change --device")
    return cast(BackendModule, importlib.import_module(f"llmcli.backends.{name}.run"))


def check(module: BackendModule, plan: Plan, weights: Mapping[str, PackedTensor]) -> None:
    """Raises UnsupportedModel naming the first operation that the backend does not compute, and why."""
    for op in plan.ops:
        formats = {weights[name].format for name in op.weights if name is not None and plan.weights[name].kind not in ("vector", "table")}
        for format in formats or {""}:
            reason = module.supports(op.kind, format)
            if reason:
                raise UnsupportedModel(f"operation {op.kind} ({op.label})", reason, "Use --device reference")
