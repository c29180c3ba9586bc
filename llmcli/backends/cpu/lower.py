"""Operations, weights and memory -> a step table: for each operation its kernel, its argument record and how many
chunks it has. Tables depend on the tile heights of token rows and of output rows, and on nothing else in a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.backends.cpu import choice, experts, records, tiles
from llmcli.backends.cpu.buffers import Buffers
from llmcli.backends.cpu.objects import Key
from llmcli.backends.cpu.records import ROW, ROWS_OUTPUTS, ROWS_TOKENS, bits, pack
from llmcli.backends.fuse import Numbered
from llmcli.errors import CorruptFile
from llmcli.formats import format as formats
from llmcli.formats.format import ROWS, PackedTensor
from llmcli.kv import BLOCK, KVCache
from llmcli.plan import Op, Plan, Slot, Weight

SHARES = 4
"""Chunks of one token's attention for each thread."""

Ints = npt.NDArray[np.int64]


@dataclass
class Table:
    """rows: int64 [operations, len(ROW)]; keep: the argument records that it points to."""

    rows: Ints
    keep: list[Ints]


class Lowering:
    """What all tables of a runner share. Raises CorruptFile where a weight is not what the plan says."""

    def __init__(
        self,
        plan: Plan,
        ops: list[Numbered],
        weights: Mapping[str, PackedTensor],
        cache: KVCache,
        buffers: Buffers,
        addresses: Mapping[Key, int],
    ) -> None:
        self.plan, self.ops, self.weights, self.cache, self.buffers, self.addresses = plan, ops, weights, cache, buffers, addresses
        self.formats = {name: weights[name].format for name in plan.weights}
        self._constants: dict[tuple[Any, ...], npt.NDArray[Any]] = {}
        for name, weight in plan.weights.items():
            _check(weight, weights[name])
        # Where each matrix's scales start, and its code table.
        self.parts = {name: self._parts(name) for name in plan.weights if weights[name].format != "vector"}

    def table(self, token_height: int, output_height: int) -> Table:
        rows, keep = np.empty((len(self.ops), len(ROW)), np.int64), []
        for at, (number, op) in enumerate(self.ops):
            outputs = self.outputs(op)
            height = output_height if outputs else token_height
            record, values, divisor, columns = LOWER[op.kind](self, op, number, height)
            names = record._fields
            if "outputs" in names:
                values["outputs"] = outputs
            args = pack(record, header=self.header, **values)
            keep.append(args)
            kernel = self.addresses[choice.kernel(op, height, self.formats, self.cache.dtype)]
            rows[at] = kernel, args.ctypes.data, ROWS_OUTPUTS if outputs else ROWS_TOKENS, divisor, columns
        return Table(rows, keep)

    @property
    def header(self) -> int:
        return int(self.buffers.header.ctypes.data)

    def outputs(self, op: Op) -> int:
        """1 where the operation works on output rows, 0 for tokens."""
        slot = (*op.out, *op.inputs)[0]
        return int(self.plan.buffers[slot.buffer].rows == "outputs")

    def place(self, name: str, slot: Slot) -> dict[str, int]:
        """The fields of an operand: address and row stride."""
        return {name: self.buffers.address(slot), f"{name}_stride": self.buffers.strides[slot.buffer]}

    def scratch(self) -> dict[str, int]:
        """The fields of memory that each thread has for the operation it is at."""
        return {"scratch": int(self.buffers.scratch.ctypes.data), "scratch_bytes": self.buffers.scratch_bytes}

    def vector(self, name: str | None) -> int:
        """The address of a float32 weight, 0 for None."""
        return 0 if name is None else int(self.weights[name].data.ctypes.data)

    def constant(self, values: Any, dtype: str) -> int:
        """The address of these numbers, which all layers share; 0 for none."""
        if not values:
            return 0
        return int(self._constants.setdefault((values, dtype), np.array(values, dtype)).ctypes.data)

    def _parts(self, name: str) -> dict[str, int]:
        tensor = self.weights[name]
        module = formats.get(tensor.format)
        start = int(tensor.data.ctypes.data)
        rows, columns = tensor.shape[-2:]
        sections = module.sections(rows, columns)
        codes = np.array(module.FORMAT.codes, np.int64) + 128
        table = self.constant(tuple(codes.tolist()), "uint8")
        return {"weights": start, "weight_scales": start + sections[0], "codes": table, "columns": columns, "rows": rows}

    def offsets(self, name: str) -> int:
        """The address of a matrix's offsets, 0 where its format has none."""
        tensor = self.weights[name]
        module = formats.get(tensor.format)
        return int(tensor.data.ctypes.data) + sum(module.sections(*tensor.shape[-2:])[:2]) if module.FORMAT.offset else 0


def _check(weight: Weight, tensor: PackedTensor) -> None:
    """Kernels trust formats and sizes."""
    shape, plain = weight.shape, weight.kind in ("vector", "table")
    if (tensor.format == "vector") != plain:
        raise CorruptFile(f"weight {weight.name}", f"a {weight.kind} in the format {tensor.format}")
    size = 4 * math.prod(shape) if plain else math.prod(shape[:-2]) * formats.get(tensor.format).size(*shape[-2:])
    if tuple(tensor.shape) != shape or len(tensor.data) < size:
        found = f"it has shape {tuple(tensor.shape)} and {len(tensor.data):,} bytes, not {shape} and {size:,}"
        raise CorruptFile(f"weight {weight.name}", found)


Lowered = tuple[Any, dict[str, int], int, int]
"""Record, its fields, divisor and columns of the chunk count."""


def _embed(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    return records.EMBED, {**at.parts[str(op.weights[0])], **at.place("out", op.out[0])}, 1, 1


def _position_add(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    fields = {"table": at.vector(op.weights[0]), "columns": op.out[0].width, "offset": op.integer("offset")}
    return records.POSITION, {**fields, **at.place("x", op.out[0])}, 1, 1


def _quantize(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    x = op.inputs[0]
    fields = {**at.place("x", x), **at.buffers.quantized(at.outputs(op), x.width), "columns": x.width}
    return records.QUANTIZE, fields, height, 1


def _linear(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    matrix, bias = str(op.weights[0]), op.weights[1] if len(op.weights) > 1 else None
    x, parts = op.inputs[0], at.parts[matrix]
    if formats.integers(at.formats[matrix]):
        quantized = at.buffers.quantized(at.outputs(op), x.width)
        source = {"x": quantized["codes"], "x_scales": quantized["scales"], "x_sums": quantized["sums"]}
    else:
        source = {"x": at.buffers.address(x), "x_scales": at.buffers.strides[x.buffer], "x_sums": 0}
    tiles = -(-parts["rows"] // ROWS)
    chunk_tiles = choice.chunk_tiles(tiles, len(at.weights[matrix].data), height, at.buffers.threads)
    fields = {**parts, **source, **at.place("out", op.out[0]), "bias": at.vector(bias), "chunk_tiles": chunk_tiles, **at.scratch()}
    fields["weight_offsets"] = at.offsets(matrix)
    return records.LINEAR, {**fields, "add": int(bool(op.params["add"]))}, choice.WHOLE, -(-tiles // chunk_tiles)


def _norm(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    weight, bias = op.weights[0], op.weights[1] if len(op.weights) > 1 else None
    heads, columns = op.integer("heads"), op.out[0].width
    own = weight is not None and at.weights[weight].shape[0] == columns
    fields = {
        **at.place("x", op.inputs[0]),
        **at.place("out", op.out[0]),
        "weight": at.vector(weight) or at.constant((1.0,) * (columns // heads), "float32"),
        "bias": at.vector(bias),
        "columns": columns,
        "heads": heads,
        "eps": bits(op.number("eps")),
        "op": number,
        "weight_step": columns // heads * 4 if own else 0,
    }
    return records.NORM, fields, 1, 1


def _elementwise(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    a, b = op.inputs[0], op.inputs[-1]
    param = {"scale": "factor", "softcap": "cap", "clip": "limit"}.get(op.kind)
    value = bits(op.number(param)) if param else 0
    fields = {**at.place("a", a), **at.place("b", b), **at.place("out", op.out[0]), "columns": op.out[0].width, "value": value}
    return records.ELEMENTWISE, fields, 1, 1


def _rope(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    fields = {name: op.integer(name) for name in ("heads", "head_size", "size")}
    frequencies = at.constant(op.params["frequencies"], "float64")
    factor = bits(op.number("factor"))
    return records.ROPE, {**at.place("x", op.out[0]), **fields, "frequencies": frequencies, "factor": factor}, 1, 1


def _cache(at: Lowering, layer: int) -> dict[str, int]:
    cache, shape = at.cache, at.cache.layers[layer]
    return {
        "cache": int(cache.data.ctypes.data) + cache.layer_offsets[layer],
        "block_bytes": cache.block_bytes,
        "head_bytes": cache.head_bytes(shape),
        "key_bytes": cache.key_bytes(shape),
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
    }


def _cache_write(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    fields = {**at.place("key", op.inputs[0]), **at.place("value", op.inputs[1]), **_cache(at, op.integer("layer")), "op": number}
    if "frequencies" not in op.params:
        return records.CACHE_WRITE, fields, 1, 1
    _, turned, divisor, columns = _rope(at, op, number, height)
    written = {f"write_{name}": value for name, value in fields.items()}
    return records.ROPE_WRITE, {**turned, **written, "write_header": at.header}, divisor, columns


def _attention(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    buffers = at.buffers
    heads, kv_heads = op.integer("heads"), op.integer("kv_heads")
    fields = {
        **at.place("query", op.inputs[0]),
        **at.place("out", op.out[0]),
        **_cache(at, op.integer("layer")),
        "heads": heads,
        "scale": bits(op.number("scale")),
        "window": op.integer("window"),
        "softcap": bits(op.number("softcap")),
        "slopes": at.constant(op.params["slopes"], "float32"),
        "sinks": at.vector(op.weights[0] if op.weights else None),
        **at.scratch(),
    }
    if height > 1:
        return records.ATTENTION, fields, choice.tokens_together(heads // kv_heads), kv_heads
    blocks = -(-at.plan.context // BLOCK)
    shares = min(blocks, -(-SHARES * buffers.threads // kv_heads))
    tile = tiles.attention_tile(fields["head_size"], heads // kv_heads)
    fields |= {
        "shares": shares,
        "parts": int(buffers.parts.ctypes.data),
        "parts_bytes": blocks * tile.block_bytes,
        "counters": int(buffers.counters.ctypes.data),
    }
    return records.SHARED_ATTENTION, fields, 1, kv_heads * shares


def _route(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    fields = {**at.place("logits", op.inputs[0]), **at.place("ids", op.out[0]), **at.place("weights", op.out[1])}
    fields |= {name: op.integer(name) for name in ("count", "chosen", "normalise")}
    return records.ROUTE, {**fields, "scale": bits(op.number("scale"))}, 1, 1


def _select_rows(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    return records.SELECT, {**at.place("x", op.inputs[0]), **at.place("out", op.out[0]), "columns": op.out[0].width}, 1, 1


def _top(at: Lowering, op: Op, number: int, height: int) -> Lowered:
    buffers = at.buffers
    arrays: dict[str, npt.NDArray[Any]] = {"ids": buffers.top_ids, "values": buffers.top_values, "stats": buffers.top_stats}
    fields = {name: int(array.ctypes.data) for name, array in arrays.items()}
    return records.TOP, {**at.place("logits", op.inputs[0]), "vocab": at.plan.vocab, "keep": buffers.keep, **fields}, 1, 2


LOWER: dict[str, Callable[[Lowering, Op, int, int], Lowered]] = {
    "embed": _embed,
    "position_add": _position_add,
    "quantize": _quantize,
    "linear": _linear,
    "norm": _norm,
    "rope": _rope,
    "cache_write": _cache_write,
    "attention": _attention,
    "route": _route,
    "select_rows": _select_rows,
    "top": _top,
    **dict.fromkeys(("activation", "multiply", "add", "scale", "softcap", "scale_rows", "clip"), _elementwise),
    **experts.LOWER,
}
