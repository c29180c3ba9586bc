"""Plan -> the operations that compiled backends run: neighbours that belong together become one, and activations are
quantized where a matrix product wants them so.

The result is a list of (number in the plan, Op). Beyond the plan's kinds:
    quantize      its input, as int8 in scratch memory, where the next linear finds it
    linear        with the parameter `add`: the product is added to `out`
    activation    with a second input, which multiplies
    cache_write   with the parameters of rope and its `out`, which is turned first; only where a backend has that
    norm, activation, attention
                  with the parameter `kept`: what they compute is quantized too, and stays as floats where kept; likewise
    experts_*     the steps of `experts` (EXPERTS), each with its operands
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from llmcli.plan import Op, Plan, Slot

MULTIPLIED = ("silu", "gelu", "gelu_tanh")
"""Activations that have a kernel with the multiplication behind them."""

EXPERTS = ("group", "place", "up", "activate", "down", "combine")
"""The steps of `experts`, in their order (kernels/experts.py)."""

Numbered = tuple[int, Op]


def fuse(plan: Plan, integers: Callable[[str], bool], turns: bool = False, quantizers: Collection[str] = ()) -> list[Numbered]:
    """integers(weight name): whether products with it take activations in int8; turns: whether cache_write takes the rope before it;
    quantizers: kinds of operations that take the quantize behind them."""
    ops = list(_quantized(_merged(plan, turns), integers))
    return list(_quantizing(plan, ops, integers, quantizers))


def _merged(plan: Plan, turns: bool) -> Iterator[Numbered]:
    skip = -1
    for number, op in enumerate(plan.ops):
        if number == skip:
            continue
        after = plan.ops[number + 1] if number + 1 < len(plan.ops) else None
        one = after and (_gated(op, after) or _added(plan, op, number + 1))
        if one:
            skip = number + 1
            yield number, one
        elif turns and after and (op.kind, after.kind) == ("rope", "cache_write"):
            skip = number + 1
            yield skip, replace(after, out=op.out, params={**op.params, **after.params})
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


def _quantizing(plan: Plan, ops: list[Numbered], integers: Callable[[str], bool], kinds: Collection[str]) -> Iterator[Numbered]:
    """Joins each quantize with the operation before it that computes its input, if that is of one of these kinds, and not head by head."""
    places = iter(range(len(ops)))
    for at in places:
        number, op = ops[at]
        after = ops[at + 1][1] if at + 1 < len(ops) else None
        whole = op.kind in kinds and not (op.kind == "norm" and op.integer("heads") > 1)
        if whole and after and after.kind == "quantize" and after.inputs == op.out:
            next(places)
            yield number, replace(op, params={**op.params, "kept": _read(plan, op.out[0], ops[at + 2 :], integers)})
        else:
            yield number, op


def _read(plan: Plan, slot: Slot, later: list[Numbered], integers: Callable[[str], bool]) -> bool:
    """Somebody reads the slot as floats before it is written again; integer products read what was quantized."""
    for _, op in later:
        coded = op.kind == "linear" and integers(str(op.weights[0]))
        read = (*(() if coded else op.inputs), *(op.out if op.params.get("add") else ()))
        if any(overlap(slot, x) for x in read):
            return True
        if any(covers(out, slot) for out in op.out):
            return False
    return slot.buffer in (plan.logits, *plan.taps)


def overlap(a: Slot, b: Slot) -> bool:
    """Some column is in both."""
    return a.buffer == b.buffer and a.start < b.start + b.width and b.start < a.start + a.width


def covers(a: Slot, b: Slot) -> bool:
    """All of b lies in a."""
    return a.buffer == b.buffer and a.start <= b.start and b.start + b.width <= a.start + a.width
