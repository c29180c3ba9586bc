"""A layer's mixture of experts on this backend: the memory that its steps (fuse.EXPERTS) share, and their rows of the
step table. The work itself is in kernels/experts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcli.backends.cpu import choice, records
from llmcli.backends.cpu.records import SLOT, bits
from llmcli.formats import format as formats
from llmcli.formats.format import GROUP, ROWS, Bytes, padded
from llmcli.plan import Op, Plan

if TYPE_CHECKING:
    from llmcli.backends.cpu.lower import Lowered, Lowering

LINE = 64


def rows(op: Op, tokens: int, height: int) -> int:
    """The most rows that the choices of so many tokens need, where each expert's begin at a multiple of `height`."""
    choices = tokens * op.integer("chosen")
    return padded(choices + min(choices, op.integer("count")) * (height - 1), height)


class Memory:
    """For steps of up to `tokens` tokens: slots, places and counts; rows of inputs or of outputs (f32), of inner
    activations (f32), and of either in int8. tallest: most rows in a block. new: allocates bytes."""

    def __init__(self, plan: Plan, tokens: int, tallest: int, new: Callable[[int], Bytes]) -> None:
        ops = [op for op in plan.ops if op.kind == "experts"]
        outer = max((op.out[0].width for op in ops), default=0)
        inner = max((op.integer("size") * (2 if op.params["gated"] else 1) for op in ops), default=0)
        self._rows = max((rows(op, tokens, tallest) for op in ops), default=0)
        self.outer_stride, self.inner_stride = padded(4 * outer, LINE), padded(4 * inner, LINE)
        sizes = {
            "slots": 4 * SLOT * max((op.integer("count") for op in ops), default=0),
            "counts": 4 * max((op.integer("count") for op in ops), default=0),
            "places": 4 * self._rows,
            "outer": self._rows * self.outer_stride,
            "inner": self._rows * self.inner_stride,
            "codes": self._rows * padded(max(outer, inner), GROUP) * (GROUP + 8) // GROUP,
        }
        self._arrays = {name: new(size) for name, size in sizes.items()}
        self._used = np.zeros(1, np.int64)

    def __getitem__(self, name: str) -> int:
        """An address."""
        array: Any = self._used if name == "used" else self._arrays[name]
        return int(array.ctypes.data)

    def codes(self, columns: int) -> dict[str, int]:
        """The addresses of codes, scales and sums of rows of so many columns."""
        codes, count = self["codes"], self._rows * padded(columns, GROUP)
        return {"codes": codes, "scales": codes + count, "sums": codes + count + count // GROUP * 4}


def _group(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    memory = at.buffers.experts
    fields = {name: op.integer(name) for name in ("count", "chosen")}
    fields |= {name: memory[name] for name in ("counts", "slots", "used", "places")}
    return records.EXPERTS_GROUP, {**at.place("ids", op.inputs[1]), **fields, "height": height}, choice.WHOLE, 1


def _place(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    memory, x, chosen = at.buffers.experts, op.inputs[0], op.integer("chosen")
    fields = {"columns": x.width, "chosen": chosen, "places": memory["places"], **memory.codes(x.width)}
    fields["height"] = height if formats.integers(at.formats[str(op.weights[0])]) else 0
    return records.EXPERTS_PLACE, {**at.place("x", x), **fields, "out": memory["outer"], "out_stride": memory.outer_stride}, 1, chosen


def _linear(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    memory, first = at.buffers.experts, op.kind == "experts_up"
    name, bias = (op.weights[i] for i in ((0, 2) if first else (1, 3)))
    parts, tensor = at.parts[str(name)], at.weights[str(name)]
    matrix_bytes = formats.get(tensor.format).size(parts["rows"], parts["columns"])
    outer, inner = (memory["outer"], memory.outer_stride), (memory["inner"], memory.inner_stride)
    (x, x_stride), (out, out_stride) = (outer, inner) if first else (inner, outer)
    if formats.integers(tensor.format):
        codes = memory.codes(parts["columns"])
        source = {"x": codes["codes"], "x_scales": codes["scales"], "x_sums": codes["sums"]}
    else:
        source = {"x": x, "x_scales": x_stride, "x_sums": 0}
    tiles = -(-parts["rows"] // ROWS)
    # As few as one row for each expert: pieces are as large as those of a product with one row.
    piece = choice.chunk_tiles(tiles, matrix_bytes, 1, at.buffers.threads)
    slots = min(op.integer("count"), op.integer("chosen") * height) if height < choice.heights()[-1] else tensor.shape[0]
    fields = {
        **parts,
        **source,
        "weight_offsets": at.offsets(str(name)),
        "out": out,
        "out_stride": out_stride,
        "bias": at.vector(bias),
        "chunk_tiles": piece,
        "add": 0,
        **at.scratch(),
        "slots": memory["slots"],
        "used": memory["used"],
        "slot_chunks": -(-tiles // piece),
        "matrix_bytes": matrix_bytes,
        "bias_bytes": 4 * parts["rows"],
    }
    return records.EXPERTS_LINEAR, fields, choice.WHOLE, slots * fields["slot_chunks"]


def _activate(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    memory, size, chosen = at.buffers.experts, op.integer("size"), op.integer("chosen")
    fields = {"inner": memory["inner"], "inner_stride": memory.inner_stride, "size": size, "chosen": chosen, "places": memory["places"]}
    fields["height"] = height if formats.integers(at.formats[str(op.weights[1])]) else 0
    numbers = {name: bits(op.number(name)) for name in ("limit", "shift")}
    return records.EXPERTS_ACTIVATE, {**fields, **memory.codes(size), **numbers}, 1, chosen


def _combine(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    memory, out = at.buffers.experts, op.out[0]
    fields = {"chosen": op.integer("chosen"), "places": memory["places"], "columns": out.width}
    said = {"said": memory["outer"], "said_stride": memory.outer_stride}
    return records.EXPERTS_COMBINE, {**at.place("weights", op.inputs[2]), **at.place("out", out), **fields, **said}, 1, 1


LOWER = {
    "experts_group": _group,
    "experts_place": _place,
    "experts_up": _linear,
    "experts_activate": _activate,
    "experts_down": _linear,
    "experts_combine": _combine,
}
