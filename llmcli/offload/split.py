"""One plan -> several that together compute the same: layers here, layers there.

A part is a plan of its own with the operations of consecutive layers, the buffers that they use, and the whole model's KV cache
(each part writes its own layers of it). What it reads and did not write is `given` to it by the parts before, which show it as a tap:
between layers that is the residual stream. What stands before the first layer belongs to that layer, what follows the last one to the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from llmcli.errors import InternalError
from llmcli.plan import Op, Plan, Slot

LAYER = re.compile(r"layers\.(\d+)\.")
"""How labels of a layer's operations begin (models/decoder.py)."""


def layer_starts(plan: Plan) -> list[int]:
    """For each layer the number of its first operation; 0 for the first."""
    starts: dict[int, int] = {}
    for number, op in enumerate(plan.ops):
        if found := LAYER.match(op.label):
            starts.setdefault(int(found[1]), number)
    if sorted(starts) != list(range(len(plan.cache))):
        raise InternalError("the plan's labels do not tell its layers apart")
    return [0, *(starts[layer] for layer in range(1, len(starts)))]


def split(plan: Plan, counts: Sequence[int]) -> list[Plan]:
    """Parts of so many consecutive layers each; zeros make no part. Raises InternalError unless they are all the plan's layers."""
    if sum(counts) != len(plan.cache) or min(counts) < 0:
        raise InternalError(f"a plan of {len(plan.cache)} layers cannot be split into {tuple(counts)}")
    starts = [*layer_starts(plan), len(plan.ops)]
    first, parts = 0, []
    for count in filter(None, counts):
        parts.append(plan.ops[starts[first] : starts[first + count]])
        first += count
    given = [_given(plan, ops) for ops in parts]
    written = [{slot.buffer for op in ops for slot in op.out} for ops in parts]
    found = []
    for number, ops in enumerate(parts):
        later = {buffer for needed in given[number + 1 :] for buffer in needed}
        shown = [buffer for buffer in sorted(written[number]) if buffer in later or buffer in plan.taps]
        found.append(_part(plan, ops, shown, given[number]))
    return found


def _given(plan: Plan, ops: Iterable[Op]) -> list[int]:
    """Buffers with columns that these operations read before they write them."""
    filled = [bytearray(buffer.width) for buffer in plan.buffers]
    found = set()
    for op in ops:
        found |= {slot.buffer for slot in op.inputs if not all(filled[slot.buffer][slot.start : slot.start + slot.width])}
        for slot in op.out:
            filled[slot.buffer][slot.start : slot.start + slot.width] = b"\1" * slot.width
    return sorted(found)


def _part(plan: Plan, ops: tuple[Op, ...], shown: list[int], given: list[int]) -> Plan:
    """A plan of these operations, with the buffers and weights that they use."""
    used = sorted({slot.buffer for op in ops for slot in (*op.out, *op.inputs)})
    place = {old: new for new, old in enumerate(used)}

    def moved(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
        return tuple(replace(slot, buffer=place[slot.buffer]) for slot in slots)

    # A part without the head has no logits. A runner then shows those of a tap, which nobody reads, or none.
    wide = (n for n in used if plan.buffers[n].rows == "outputs" and plan.buffers[n].width == plan.vocab)
    logits = place[plan.logits] if plan.logits in place else place[next(wide, used[0])]
    names = {name for op in ops for name in op.weights if name is not None}
    return replace(
        plan,
        ops=tuple(replace(op, out=moved(op.out), inputs=moved(op.inputs)) for op in ops),
        buffers=tuple(plan.buffers[number] for number in used),
        weights={name: weight for name, weight in plan.weights.items() if name in names},
        logits=logits,
        taps=tuple(place[number] for number in shown),
        given=tuple(place[number] for number in given),
    )
