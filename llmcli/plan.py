"""Contract 2: a plan, the flat list of operations that computes one step of a model.

A plan is data: operations over numbered buffers, the weights they need, and the KV cache they write. It can be
printed (`str(plan)`), counted (`plan.parameters`) and tested before anything is allocated. `models/decoder.py`
makes plans; `weights/convert.py` makes the weights they name; backends run them. It knows no architecture, no
format, no array library.

A step computes T tokens, each with its sequence and position; R of them get logits (`select_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmcli.errors import InternalError
from llmcli.ops import OPERATIONS

Param = float | int | str | bool | tuple[float, ...]


@dataclass(frozen=True)
class Buffer:
    """Activations: rows x width numbers of dtype. rows: 'tokens' (T of them) or 'outputs' (R of them)."""

    name: str
    width: int
    rows: str = "tokens"
    dtype: str = "f32"


@dataclass(frozen=True)
class Slot:
    """Columns start .. start + width of a buffer: what an operation reads or writes."""

    buffer: int
    start: int
    width: int


@dataclass(frozen=True)
class Weight:
    """A tensor the plan needs. `name` is ours and the same for every architecture.

    kind: 'matrix' [N, K] is quantized to the chosen format; 'embedding' [V, H] is a matrix whose rows are also
    looked up, so it keeps 8 bits or more, and so does 'head'; 'experts' [E, N, K] is E matrices; 'router' [E, K] is
    a matrix that stays float32, because it decides; 'vector' [n] and 'table' [P, H] stay float32 too.
    """

    name: str
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Op:
    """One operation. kind: a key of ops.OPERATIONS; weights: names in `plan.weights`, None where absent."""

    kind: str
    out: tuple[Slot, ...]
    inputs: tuple[Slot, ...] = ()
    weights: tuple[str | None, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    label: str = ""

    def integer(self, name: str) -> int:
        """A parameter that is a whole number."""
        value = self.params[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """A parameter that is a number."""
        value = self.params[name]
        assert isinstance(value, int | float)
        return float(value)


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps per position: a key and a value of head_size for each of kv_heads."""

    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Plan:
    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    weights: Mapping[str, Weight]
    cache: tuple[CacheLayer, ...]
    vocab: int
    hidden: int
    context: int
    logits: int
    """Number of the buffer that holds logits [R, V]; `top`, the last op, reads it."""
    taps: tuple[int, ...] = ()
    """Numbers of further buffers that a step's result shows (`Result.taps`)."""
    given: tuple[int, ...] = ()
    """Numbers of buffers that a step's input fills (`Batch.given`): those of a part of a model, computed by the part before."""

    def __post_init__(self) -> None:
        for op in self.ops:
            self._check(op)

    def _check(self, op: Op) -> None:
        known = OPERATIONS.get(op.kind)
        if known is None:
            raise InternalError(f"plan: unknown operation {op.kind}")
        if len(op.inputs) != len(known.inputs) or len(op.weights) > len(known.weights):
            raise InternalError(f"plan: {op.kind} ({op.label}) has the wrong number of operands")
        if set(op.params) != set(known.params):
            raise InternalError(f"plan: {op.kind} ({op.label}) needs the parameters {known.params}, has {set(op.params)}")
        for slot in (*op.out, *op.inputs):
            if not 0 <= slot.start <= slot.start + slot.width <= self.buffers[slot.buffer].width:
                raise InternalError(f"plan: {op.kind} ({op.label}) reaches outside buffer {slot.buffer}")
        for name in op.weights:
            if name is not None and name not in self.weights:
                raise InternalError(f"plan: {op.kind} ({op.label}) uses the unknown weight {name}")

    @property
    def parameters(self) -> int:
        """Numbers in all weights, shared ones counted once."""
        total = 0
        for weight in self.weights.values():
            count = 1
            for size in weight.shape:
                count *= size
            total += count
        return total

    def __str__(self) -> str:
        """One line an operation: outputs = kind(inputs; weights; parameters)  # label."""

        def show(slot: Slot) -> str:
            buffer = self.buffers[slot.buffer]
            whole = slot.start == 0 and slot.width == buffer.width
            return buffer.name if whole else f"{buffer.name}[{slot.start}:{slot.start + slot.width}]"

        lines = []
        for number, op in enumerate(self.ops):
            parts = [", ".join(map(show, op.inputs)), ", ".join(name or "-" for name in op.weights)]
            parts.append(", ".join(f"{k}={_short(v)}" for k, v in op.params.items()))
            inside = "; ".join(part for part in parts if part)
            lines.append(f"{number:4d}  {', '.join(map(show, op.out)) or '-'} = {op.kind}({inside})  # {op.label}")
        return "\n".join(lines)


def _short(value: Param) -> str:
    if isinstance(value, tuple):
        return f"<{len(value)}>"
    return f"{value:g}" if isinstance(value, float) else str(value)
