"""Operations, weights and memory -> what is launched for them, for steps of up to so many tokens and output rows.

Grids are fixed by those two numbers; kernels look at the step for what is really there, so the same launches serve every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cuda import weights as repacked
from llmcli.backends.cuda.buffers import Buffers
from llmcli.backends.cuda.kernels import (
    cache,
    choices,
    elementwise,
    embed,
    experts,
    groups,
    linear,
    norm,
    position,
    quantize,
    rope,
    rope_cache,
    route,
    select,
    top,
)
from llmcli.backends.cuda.kernels.attention_decode import attention_decode, attention_merge, units
from llmcli.backends.cuda.kernels.attention_prompt import attention_prompt
from llmcli.backends.cuda.kernels.step import HEADER
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.memory import Array, Memory
from llmcli.backends.cuda.store import DeviceStore
from llmcli.backends.fuse import Numbered, covers
from llmcli.formats import format as formats
from llmcli.formats.format import GROUP, PackedTensor
from llmcli.plan import Op, Plan, Slot

FEW = 8
"""Up to so many tokens, attention is spread over the keys of each of them; for more, over tokens."""
ELEMENTWISE = {"activation": "", "multiply": "", "add": "", "scale": "factor", "softcap": "cap", "clip": "limit", "scale_rows": ""}
"""Operations on numbers one by one, and their parameter."""
QUANTIZERS = ("norm", "activation", "attention")
"""Operations that also quantize what they compute (backends/fuse.py)."""


def supports(op: str, format: str) -> str:
    """See backends.backend."""
    if op not in LOWER and op != "experts":
        return f"the cuda backend does not compute {op} yet"
    return "" if not format or format in formats.names() else f"there is no format {format}"


class Lowering:
    """What all launches of a runner share: the weights on the GPU among it."""

    def __init__(
        self,
        plan: Plan,
        ops: list[Numbered],
        weights: Mapping[str, PackedTensor],
        store: DeviceStore,
        buffers: Buffers,
        memory: Memory,
    ) -> None:
        self.plan, self.ops, self.store, self.buffers, self.memory = plan, ops, store, buffers, memory
        self.tensors = {name: weights[name] for name in plan.weights}
        self.weights = {name: self._upload(tensor) for name, tensor in self.tensors.items()}
        self.nothing = memory.array(1, np.float32)
        """Stands for a weight that an operation does not have."""
        self._constants: dict[tuple[Any, ...], Array] = {}
        self.parts = self._attention_parts()

    def launches(self, tokens: int, outputs: int) -> list[Launch]:
        """A step of up to so many tokens and output rows."""
        found = []
        for op_number, op in self.ops:
            of_outputs = self.of_outputs(op)
            rows = outputs if of_outputs else tokens
            found += LOWER[op.kind](self, op, op_number, rows) if rows else []
        return found

    def of_outputs(self, op: Op) -> int:
        """1 where the operation works on output rows, 0 for tokens."""
        return self.is_of_outputs((*op.out, *op.inputs)[0])

    def is_of_outputs(self, slot: Slot) -> int:
        return int(self.plan.buffers[slot.buffer].rows == "outputs")

    def quantizes(self, op: Op) -> bool:
        """What it computes is quantized too."""
        return "kept" in op.params

    def quantized(self, op: Op) -> tuple[int, Array]:
        """The last arguments of kernels that quantize: whether floats are kept, and where codes go."""
        return int(bool(op.params["kept"])), self.buffers.codes[self.of_outputs(op)]

    def operand(self, slot: Slot) -> tuple[Array, int, int]:
        return self.buffers.operand(slot)

    def place(self, name: str) -> repacked.Place:
        """The layout of a matrix."""
        tensor = self.tensors[name]
        return repacked.place(tensor.format, *tensor.shape[-2:])

    def vector(self, name: str | None) -> Array:
        """A float32 weight, or something in its place."""
        return self.nothing if name is None else self.weights[name]

    def constant(self, values: Any) -> Array:
        """These float32 numbers, which all layers share; something in their place where there are none."""
        if not values:
            return self.nothing
        if values not in self._constants:
            self._constants[values] = self.memory.constant(np.array(values, np.float32))
        return self._constants[values]

    def cached(self, layer: int) -> tuple[Array, int, int]:
        """The store's bytes, where a layer begins in a block, and bytes of a block."""
        return self.store.bytes, self.store.start(layer), self.store.layout.block_bytes

    def _upload(self, tensor: PackedTensor) -> Array:
        size = repacked.size(tensor)

        def pieces() -> Iterator[npt.NDArray[np.uint8]]:
            data: npt.NDArray[np.uint8] = np.empty(size, np.uint8)
            repacked.repack(tensor, data)
            yield data

        return self.memory.upload(pieces(), size, np.uint8).view(np.float32 if tensor.format == "vector" else np.uint8)

    def _attention_parts(self) -> tuple[Array, Array]:
        """What attention of few tokens keeps between its two launches: vectors and extents."""
        most = units(self.plan.context)
        vectors = extents = 0
        for op in self.plan.ops:
            if op.kind == "attention":
                rows = FEW * op.integer("heads") * most
                vectors, extents = max(vectors, rows * op.integer("head_size")), max(extents, 2 * rows)
        return self.memory.array(vectors, np.float32), self.memory.array(extents, np.float32)


def _launch(chosen: Any, args: tuple[Any, ...]) -> Launch:
    """chosen: kernel, grid and block, as the kernels' files give them."""
    kernel, grid, block = chosen
    return Launch(kernel, grid, block, args)


# What each operation is launched as: (lowering, operation, its number in the plan, most rows) -> launches.


def _position_add(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    columns = op.out[0].width
    args = (at.buffers.step, *at.operand(op.out[0]), at.vector(op.weights[0]), columns, op.integer("offset"))
    return [_launch(position.position_add(rows, columns), args)]


def _norm(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    weight, bias, kind = op.weights[0], op.weights[1] if len(op.weights) > 1 else None, str(op.params["kind"])
    heads, width = op.integer("heads"), op.out[0].width
    args: tuple[Any, ...] = (
        *(at.buffers.step, at.of_outputs(op), at.buffers.fault, op_number, *at.operand(op.inputs[0])),
        *(at.vector(weight), int(weight is not None), at.vector(bias), int(bias is not None), *at.operand(op.out[0])),
        *(width // heads, op.number("eps")),
    )
    if at.quantizes(op):
        in_place = bool(op.params["kept"]) and op.inputs == op.out
        return [_launch(norm.norm_quantize(kind, rows, width, in_place), (*args, *at.quantized(op)))]
    if heads > 1:
        own = weight is not None and at.tensors[weight].shape[0] == width
        args += (heads, width // heads if own else 0)
    return [_launch(norm.norm(kind, rows, heads), args)]


def _elementwise(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    name = str(op.params["kind"]) + ("_multiply" if len(op.inputs) == 2 else "") if op.kind == "activation" else op.kind
    param, columns = ELEMENTWISE[op.kind], op.out[0].width
    operands = (*at.operand(op.inputs[0]), *at.operand(op.inputs[-1]), *at.operand(op.out[0]))
    args = (at.buffers.step, at.of_outputs(op), *operands, columns, op.number(param) if param else 0.0)
    if at.quantizes(op):
        return [_launch(elementwise.elementwise_quantize(name, rows, columns), (*args, *at.quantized(op)))]
    return [_launch(elementwise.elementwise(name, rows, columns), args)]


def _rope(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    heads, pairs = op.integer("heads"), op.integer("size") // 2
    frequencies = at.constant(op.params["frequencies"])
    args = (at.buffers.step, *at.operand(op.out[0]), heads, op.integer("head_size"), pairs, frequencies, op.number("factor"))
    return [_launch(rope.rope(bool(op.params["interleaved"]), rows, heads, pairs), args)]


def _cache_write(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    layer, (key, value) = op.integer("layer"), op.inputs
    shape, dtype = at.store.cache.layers[layer], at.store.cache.dtype
    stored, *place = at.cached(layer)
    cached = (*at.operand(value), stored.view(cache.VIEW[dtype]), *place)
    if "frequencies" not in op.params:
        chosen = cache.cache_write(shape.head_size, dtype, rows, shape.kv_heads)
        return [_launch(chosen, (at.buffers.step, at.buffers.fault, op_number, *at.operand(key), *cached))]
    (turned,), heads, pairs = op.out, op.integer("heads"), op.integer("size") // 2
    assert covers(turned, key) and key.start + key.width == turned.start + turned.width  # the keys are the last heads
    chosen = rope_cache.rope_cache_write(shape.head_size, pairs, dtype, bool(op.params["interleaved"]), rows, heads, shape.kv_heads)
    angles = heads, at.constant(op.params["frequencies"]), op.number("factor")
    return [_launch(chosen, (at.buffers.step, at.buffers.fault, op_number, *at.operand(turned), *angles, *cached, shape.kv_heads))]


def _attention(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    heads, kv_heads, size, dtype = op.integer("heads"), op.integer("kv_heads"), op.integer("head_size"), at.store.cache.dtype
    sinks = op.weights[0] if op.weights else None
    slopes = at.constant(op.params["slopes"])
    window, group = op.integer("window"), heads // kv_heads
    query, out = at.operand(op.inputs[0]), at.operand(op.out[0])
    cached = (
        *at.cached(op.integer("layer")),
        kv_heads,
        op.number("scale"),
        window,
        op.number("softcap"),
        slopes,
        int(slopes is not at.nothing),
    )
    last = (at.vector(sinks), int(sinks is not None))
    # There is no kernel for prompts that quantizes, nor one for groups of 32 columns that two heads share.
    merged = at.quantizes(op) and rows <= FEW and size % GROUP == 0
    behind = _quantize_row(at, op.out[0], rows) if at.quantizes(op) and not merged else []
    if rows > FEW:
        return [_launch(attention_prompt(size, dtype, rows, kv_heads, group), (at.buffers.step, *query, *cached, *last, *out)), *behind]
    vectors, extents = at.parts
    most = units(at.plan.context)
    args = (at.buffers.step, vectors, extents, most, *out, size, window, *last, *(at.quantized(op) if merged else ()))
    return [
        _launch(attention_decode(size, dtype, rows, kv_heads, group, most), (at.buffers.step, *query, *cached, vectors, extents, most)),
        _launch(attention_merge(size, rows, heads, merged), args),
        *behind,
    ]


def _route(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    operands = (*at.operand(op.inputs[0]), *at.operand(op.out[0]), *at.operand(op.out[1]))
    args = (at.buffers.step, *operands, op.integer("count"), op.integer("chosen"), int(bool(op.params["normalise"])), op.number("scale"))
    return [_launch(route.route(str(op.params["softmax"]), rows), args)]


def _select_rows(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    columns = op.out[0].width
    args = (at.buffers.step, *at.operand(op.inputs[0]), *at.operand(op.out[0]), columns)
    return [_launch(select.select_rows(rows, columns), args)]


def _quantize(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    return _quantize_row(at, op.inputs[0], rows)


def _quantize_row(at: Lowering, x: Slot, rows: int) -> list[Launch]:
    of_outputs = at.is_of_outputs(x)
    args = (at.buffers.step, of_outputs, *at.operand(x), x.width, at.buffers.codes[of_outputs])
    return [_launch(quantize.launch(rows, x.width), args)]


def _linear(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    name, bias, of_outputs = str(op.weights[0]), op.weights[1] if len(op.weights) > 1 else None, at.of_outputs(op)
    format = at.tensors[name].format
    x = at.buffers.codes[of_outputs] if formats.integers(format) else at.operand(op.inputs[0])
    own_bias = None if bias is None else at.weights[bias]
    out, add = at.operand(op.out[0]), bool(op.params["add"])
    return [linear.linear(format, at.place(name), rows, at.buffers.step, of_outputs, at.weights[name], x, out, own_bias, add)]


def _top(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    buffers = at.buffers
    parts, whole = top.top(rows, at.plan.vocab)
    args = (buffers.step, *at.operand(op.inputs[0]), at.plan.vocab, buffers.keep, buffers.ranks, buffers.statistics)
    found = (buffers.results["top_ids"], buffers.results["top_values"], buffers.results["top_stats"])
    pieces = top.pieces(at.plan.vocab)
    return [
        _launch(parts, args),
        _launch(whole, (buffers.step, buffers.ranks, buffers.statistics, pieces, buffers.keep, *found)),
    ]


def _embed(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    name, step = str(op.weights[0]), at.buffers.step
    # where the step's tokens begin, which is the same for steps of all sizes
    return [embed.embed(at.tensors[name].format, at.place(name), rows, step, HEADER, at.weights[name], at.operand(op.out[0]))]


def _experts_group(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    """Which choices are whose, for the products that go by it."""
    count, chosen = op.integer("count"), op.integer("chosen")
    if not any(experts.grouped(at.tensors[str(name)].format, rows, count) for name in op.weights[:2]):
        return []
    return [groups.group(rows, chosen, count, at.buffers.step, at.operand(op.inputs[1]), at.buffers.experts.groups)]


def _experts_quantize(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    """The input of a token's experts, which all of them share."""
    x = op.inputs[0]
    args = (at.buffers.step, 0, *at.operand(x), x.width, at.buffers.experts.codes)
    return [_launch(quantize.launch(rows, x.width), args)] if formats.integers(at.tensors[str(op.weights[0])].format) else []


def _experts_product(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    """A row for each choice of a token: the matrix of its expert times the token's input, or times the row of `activate`."""
    memory, chosen, first = at.buffers.experts, op.integer("chosen"), op.kind == "experts_up"
    name, bias = (op.weights[i] if i < len(op.weights) else None for i in ((0, 2) if first else (1, 3)))
    matrix = str(name)
    format, place, weights = at.tensors[matrix].format, at.place(matrix), at.weights[matrix]
    x = memory.codes if formats.integers(format) else at.operand(op.inputs[0]) if first else memory.inner
    own_bias = None if bias is None else at.weights[bias]
    per_row, ids, out = chosen if first else 1, at.operand(op.inputs[1]), memory.inner if first else memory.outer
    count = op.integer("count")
    if experts.grouped(format, rows, count):
        return [experts.by_group(format, place, rows, chosen, count, per_row, at.buffers.step, weights, x, memory.groups, out, own_bias)]
    return [experts.linear(format, place, rows, chosen, per_row, at.buffers.step, weights, x, ids, out, own_bias)]


def _experts_activate(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    memory, chosen, size, step = at.buffers.experts, op.integer("chosen"), op.integer("size"), at.buffers.step
    function, limit, shift = elementwise.ACTIVATIONS[str(op.params["activation"])], op.number("limit"), op.number("shift")
    found = [experts.activate(function, bool(op.params["gated"]), rows, chosen, step, memory.inner, size, limit, shift)]
    if formats.integers(at.tensors[str(op.weights[1])].format):
        found.append(_launch(choices.quantize(rows, chosen, size), (step, chosen, *memory.inner, size, memory.codes)))
    return found


def _experts_combine(at: Lowering, op: Op, op_number: int, rows: int) -> list[Launch]:
    memory, ids, weights = at.buffers.experts, at.operand(op.inputs[1]), at.operand(op.inputs[2])
    said, out = memory.outer, at.operand(op.out[0])
    return [experts.combine(rows, op.integer("chosen"), at.buffers.step, said, ids, weights, out, op.out[0].width)]


Lower = Callable[[Lowering, Op, int, int], list[Launch]]
LOWER: dict[str, Lower] = {
    "position_add": _position_add,
    "quantize": _quantize,
    "norm": _norm,
    "rope": _rope,
    "cache_write": _cache_write,
    "attention": _attention,
    "route": _route,
    "select_rows": _select_rows,
    "embed": _embed,
    "linear": _linear,
    "top": _top,
    "experts_group": _experts_group,
    # Rows are in the order of tokens: there is nothing to place but the input's int8.
    "experts_place": _experts_quantize,
    "experts_up": _experts_product,
    "experts_activate": _experts_activate,
    "experts_down": _experts_product,
    "experts_combine": _experts_combine,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}
