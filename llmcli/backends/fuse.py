"""Plan -> the operations that compiled backends run: neighbours that belong together become one, and activations are
quantized where a matrix product wants them so.

The result is a list of (number in the plan, Op). Beyond the plan's kinds:
    quantize      its input, as int8 in scratch memory, where the next linear finds it
    linear        with the parameter `add`: the product is added to `out`
    activation    with a second input, which multiplies
    experts_*     the steps of `experts` (EXPERTS), each with its operands
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from llmcli.plan import Op, Plan, Slot

MULTIPLIED = ("silu", "gelu", "gelu_tanh")
"""Activations that have a kernel with the multiplication behind them."""

EXPERTS = ("group", "place", "up", "activate", "down", "combine")
"""The steps of `experts`, in their order (kernels/experts.py)."""

Numbered = tuple[int, Op]


def fuse(plan: Plan, integers: Callable[[str], bool]) -> list[Numbered]:
    """integers(weight name): whether products with it take activations in int8."""
    return list(_quantized(_merged(plan), integers))


def _merged(plan: Plan) -> Iterator[Numbered]:
    skip = -1
    for number, op in enumerate(plan.ops):
        if number == skip:
            continue
        after = plan.ops[number + 1] if number + 1 < len(plan.ops) else None
        one = after and (_gated(op, after) or _added(plan, op, number + 1))
        if one:
            skip = number + 1
            yield number, one
        elif op.kind == "experts":
            yield from ((number, replace(op, kind=f"experts_{step}")) for step in EXPERTS)
        else:
            yield number, replace(op, params={"add": False}) if op.kind == "linear" else op


def _gated(op: Op, after: Op) -> Op | None:
    """activation, then multiply in place -> one operation."""
    if op.kind != "activation" or op.params["kind"] not in MULTIPLIED or after.kind != "multiply":
        return None
    gate, up = after.inputs
    if not (after.out[0] == gate == op.out[0]) or overlap(gate, up):
        return None
    return replace(op, inputs=(op.inputs[0], up))


def _added(plan: Plan, op: Op, next_number: int) -> Op | None:
    """linear, then add of its result, which nobody else wants, in place -> one operation."""
    after = plan.ops[next_number]
    if op.kind != "linear" or after.kind != "add":
        return None
    x, branch = after.inputs
    if after.out[0] != x or branch != op.out[0] or overlap(x, branch) or overlap(x, op.inputs[0]):
        return None
    return replace(op, out=(x,), params={"add": True}) if _forgotten(plan, branch, next_number + 1) else None


def _forgotten(plan: Plan, slot: Slot, start: int) -> bool:
    """Nobody reads the slot from operation `start` on before it is written again."""
    for op in plan.ops[start:]:
        if any(overlap(slot, x) for x in op.inputs):
            return False
        if any(covers(out, slot) for out in op.out):
            return True
    return slot.buffer != plan.logits


def _quantized(ops: Iterator[Numbered], integers: Callable[[str], bool]) -> Iterator[Numbered]:
    """Puts a quantize before each integer product whose input is not the one that was quantized last."""
    current = None
    for number, op in ops:
        matrix = op.weights[0] if op.kind == "linear" else None
        if matrix is not None and integers(matrix) and op.inputs[0] != current:
            current = op.inputs[0]
            yield number, Op("quantize", (), (current,), label=op.label)
        yield number, op
        if current is not None and any(overlap(current, out) for out in op.out):
            current = None


def overlap(a: Slot, b: Slot) -> bool:
    """Some column is in both."""
    return a.buffer == b.buffer and a.start < b.start + b.width and b.start < a.start + a.width


def covers(a: Slot, b: Slot) -> bool:
    """All of b lies in a."""
    return a.buffer == b.buffer and a.start <= b.start and b.start + b.width <= a.start + a.width
