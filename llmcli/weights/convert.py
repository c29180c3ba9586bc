"""From a checkpoint's tensors to the plan's weights: which tensors make a weight, and its rows as float32 on request.

`check` compares everything that the plan needs with what the headers promise, before anything is allocated. `matrices`
then gives a weight as one or more matrices whose rows are read when asked for, so that a large matrix is packed a few
rows at a time. The transform words are those of `models/names.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Protocol

import numpy as np

from llmcli.errors import CorruptFile, InternalError, NumericalError, UnsupportedModel
from llmcli.formats.format import Bytes, Floats
from llmcli.plan import Weight
from llmcli.weights import encodings
from llmcli.weights.alternating import Whole, mxfp4
from llmcli.weights.encodings import FLOATS, Encoding
from llmcli.weights.safetensors import Tensor, shown

WIDEST = 1 << 20
"""Elements that are widened to float32 at once."""


class Source(Protocol):
    """How one weight is made (models/names.py): a transform word, tensor names, heads for split_qkv."""

    @property
    def transform(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...


class Reader(Protocol):
    """Where tensors come from (folder.Checkpoint, gguf.Checkpoint)."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    def read(self, name: str, start: int, size: int) -> Bytes: ...


class Matrix(Protocol):
    """A [rows, columns] matrix whose rows can be had a few at a time, in ascending order."""

    rows: int
    columns: int

    def read(self, start: int, stop: int) -> Floats:
        """Rows start .. stop, f32. Raises NumericalError naming the tensor and the place of a NaN or infinity."""
        ...

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        """Rows start .. stop as they are stored, packed bit for bit; None where the format cannot hold them."""
        ...


def check(
    weights: Mapping[str, Weight], sources: Mapping[str, Source], tensors: Mapping[str, Tensor], ignored: tuple[str, ...] = ()
) -> None:
    """Raises CorruptFile listing the first five tensors that are missing, misshaped or not used by any weight, and
    UnsupportedModel for a type that we do not read. ignored: endings of names that need not be used."""
    faults: list[str] = []
    used: set[str] = set()
    for name, weight in weights.items():
        source = sources[name]
        used.update(source.names)
        missing = [f"{shown(n)} is missing" for n in source.names if n not in tensors]
        faults += missing or _misshaped(weight, source, [tensors[n] for n in source.names])
    faults += [f"{shown(n)} is not part of the model" for n in tensors if n not in used and not n.endswith(ignored)]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CorruptFile("the weights do not fit config.json", "; ".join(faults[:5]) + more)
    packed = {name for source in sources.values() if source.transform.startswith("mxfp4") for name in source.names}
    for name in sorted(used - packed):
        encoding = encodings.find(tensors[name].dtype)
        if encoding is None or (encoding.elements > 1 and len(tensors[name].shape) < 2):
            stored = f"it is stored as {tensors[name].dtype}, and llm reads {', '.join(FLOATS)} and the block types of GGUF"
            raise UnsupportedModel(f"tensor {shown(name)}", stored, "Use the original model in one of these types")


def _misshaped(weight: Weight, source: Source, tensors: list[Tensor]) -> list[str]:
    """What is wrong with the shapes of a weight's tensors: nothing, or one text a tensor."""
    shape = weight.shape
    match source.transform:
        case "copy" | "plus_one" | "split_qkv":
            return _unlike(tensors, shape)
        case "transpose":
            return _unlike(tensors, shape[::-1])
        case "reshape":
            return [f"{shown(t.name)} has {prod(t.shape):,} numbers, not {prod(shape):,}" for t in tensors if prod(t.shape) != prod(shape)]
        case "stack":
            return _unlike(tensors, shape[1:])
        case "transpose_each" | "transpose_alternating":
            return _unlike(tensors, (shape[0], shape[2], shape[1]))
        case "alternating":
            return _unlike(tensors, shape)
        case "mxfp4" | "mxfp4_alternating":
            (blocks, scales), groups = tensors, (*shape[:2], shape[2] // 32)
            odd = [f"{shown(t.name)} is {t.dtype}, not U8" for t in tensors if t.dtype != "U8"]
            odd += [f"{shown(blocks.name)} has blocks of 32, which do not divide {shape[2]:,} columns"] if shape[2] % 32 else []
            return odd or _unlike([blocks], (*groups, 16)) or _unlike([scales], groups)
        case "concat":
            return _unlike_parts([tensors], shape)
        case "stack_concat":
            return _unlike_parts([tensors[i : i + 2] for i in range(0, len(tensors), 2)], shape[1:])
    raise InternalError(f"unknown transform {source.transform}")


def _unlike(tensors: list[Tensor], shape: tuple[int, ...]) -> list[str]:
    return [f"{shown(t.name)} is {list(t.shape)}, not {list(shape)}" for t in tensors if t.shape != shape]


def _unlike_parts(wholes: list[list[Tensor]], shape: tuple[int, ...]) -> list[str]:
    """The tensors of each whole must, one after the other, have this shape."""
    faults = []
    for parts in wholes:
        odd = [t for t in parts if len(t.shape) != len(shape) or t.shape[1:] != shape[1:]]
        inner = "".join(f", {size}" for size in shape[1:])
        faults += [f"{shown(t.name)} is {list(t.shape)}, not [any{inner}]" for t in odd]
        rows = sum(t.shape[0] for t in parts if t not in odd)
        if not odd and rows != shape[0]:
            faults.append(f"{shown(parts[0].name)} and those joined to it have {rows:,} rows, not {shape[0]:,}")
    return faults


def float_format(source: Source, tensors: Mapping[str, Tensor]) -> str:
    """The float format that holds the source's tensors as they come: f32 where their types differ."""
    if source.transform.startswith("mxfp4"):
        return "bf16"
    found = {_encoding(tensors[name]).float_format for name in source.names}
    return found.pop() if len(found) == 1 else "f32"


def kept(source: Source, tensors: Mapping[str, Tensor], wanted: str) -> str:
    """The format that holds the source's blocks as they are, and as small, where the format `wanted` is asked for, else `wanted`."""
    found = {_moved(source, tensors, name, wanted) or wanted for name in source.names}
    return found.pop() if len(found) == 1 else wanted


def stored(source: Source, tensors: Mapping[str, Tensor]) -> str:
    """The format that keeps most of what the source holds: its own blocks, or 5 bits for what has no more, else int8."""
    found = {_moved(source, tensors, name) for name in source.names}
    if len(found) == 1 and (format := found.pop()):
        return format
    few = not source.transform.startswith("mxfp4") and all(_encoding(tensors[name]).bits <= 5 for name in source.names)
    return "int4_offset" if few else "int8"


def _moved(source: Source, tensors: Mapping[str, Tensor], name: str, wanted: str | None = None) -> str:
    """The format that a tensor's blocks are moved to (for `wanted`), or ''."""
    blocks = None if source.transform.startswith("mxfp4") else _encoding(tensors[name]).blocks
    return blocks.format if blocks is not None and wanted in (None, blocks.wanted) else ""


def _encoding(tensor: Tensor) -> Encoding:
    """The encoding of a tensor that has passed `check`."""
    found = encodings.find(tensor.dtype)
    if found is None:
        raise InternalError(f"tensor {shown(tensor.name)} was not checked")
    return found


def matrices(weight: Weight, source: Source, reader: Reader) -> list[Matrix]:
    """The weight as matrices [N, K]: one, or one an expert. A vector [n] is a matrix of one column."""
    names = source.names
    match source.transform:
        case "copy":
            count = weight.shape[0] if len(weight.shape) == 3 else 1
            rows = _height(weight.shape) // count
            return [_Stored(reader, names[0], e * rows, rows) for e in range(count)]
        case "transpose":
            return [_Rearranged(reader, names[0], np.arange(weight.shape[0]), transposed=True)]
        case "plus_one":
            return [_PlusOne(_whole(reader, names[0]))]
        case "split_qkv":
            group = source.heads // source.kv_heads
            heads = np.arange(weight.shape[0]).reshape(source.kv_heads, group + 2, -1)
            order = np.concatenate([part.ravel() for part in (heads[:, :group], heads[:, group], heads[:, group + 1])])
            return [_Rearranged(reader, names[0], order)]
        case "reshape" | "alternating":
            few, width, alternating = _whole(reader, names[0]), _width(weight.shape), source.transform == "alternating"
            values = Whole(_height(weight.shape), width, lambda: _columns(few.read(0, few.rows).reshape(-1, width), alternating))
            return [values]
        case "transpose_each" | "transpose_alternating":
            return [_transposed(reader, names[0], e, source.transform == "transpose_alternating") for e in range(weight.shape[0])]
        case "mxfp4" | "mxfp4_alternating":
            return [_mxfp4(reader, names, e, weight.shape[1:], source.transform == "mxfp4_alternating") for e in range(weight.shape[0])]
        case "concat":
            return [_Joined([_whole(reader, name) for name in names])]
        case "stack":
            return [_whole(reader, name) for name in names]
        case "stack_concat":
            return [_Joined([_whole(reader, name) for name in pair]) for pair in zip(names[::2], names[1::2], strict=True)]
    raise InternalError(f"unknown transform {source.transform}")


def chunks(matrix: Matrix, step: int) -> Iterator[tuple[int, Floats]]:
    """All rows of a matrix, in the blocks of `spans`: (first row, rows)."""
    for start, stop in spans(matrix, step):
        yield start, matrix.read(start, stop)


def spans(matrix: Matrix, step: int) -> Iterator[tuple[int, int]]:
    """A matrix cut into blocks of a multiple of `step` rows and about WIDEST elements: (first row, row after the last)."""
    block = max(step, WIDEST // max(matrix.columns, 1) // step * step)
    for start in range(0, matrix.rows, block):
        yield start, min(start + block, matrix.rows)


def _width(shape: tuple[int, ...]) -> int:
    """Columns of a tensor seen as rows: its last dimension, or 1 for a vector."""
    return shape[-1] if len(shape) > 1 else 1


def _height(shape: tuple[int, ...]) -> int:
    return prod(shape) // _width(shape)


class _Stored:
    """Rows first .. first + rows of a tensor, as they are stored."""

    def __init__(self, reader: Reader, name: str, first: int, rows: int) -> None:
        self._reader, self._tensor, self._first = reader, reader.tensors[name], first
        self.rows, self.columns = rows, _width(self._tensor.shape)
        self.encoding = _encoding(self._tensor)

    def read(self, start: int, stop: int) -> Floats:
        values = self.encoding.decode(self.raw(start, stop).reshape(-1))
        _check_finite(values, (self._first + start) * self.columns, self._tensor)
        return values.reshape(stop - start, self.columns)

    def raw(self, start: int, stop: int) -> Bytes:
        """Rows start .. stop as they are stored, u8 [rows, bytes of a row]."""
        width, count = self.columns // self.encoding.elements * self.encoding.size, stop - start
        return self._reader.read(self._tensor.name, (self._first + start) * width, count * width).reshape(count, width)

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        return self.encoding.repack(lambda: self.raw(start, stop), format)


def _whole(reader: Reader, name: str) -> _Stored:
    return _Stored(reader, name, 0, _height(reader.tensors[name].shape))


def _columns(values: Floats, alternating: bool) -> Floats:
    """The values; alternating: columns 0, 2, ... before 1, 3, ..."""
    return np.concatenate([values[:, ::2], values[:, 1::2]], axis=1) if alternating else values


def _transposed(reader: Reader, name: str, expert: int, alternating: bool) -> Whole:
    """One of the matrices of a tensor [E, K, N], as [N, K]."""
    columns, rows = reader.tensors[name].shape[1:]
    stored = _Stored(reader, name, expert * columns, columns)
    return Whole(rows, columns, lambda: stored.read(0, columns).T, alternating)


def _mxfp4(reader: Reader, names: tuple[str, ...], expert: int, shape: tuple[int, ...], alternating: bool) -> Whole:
    """One expert's matrix of 4-bit floats."""
    rows, columns = shape

    def load() -> Floats:
        sizes = rows * columns // 2, rows * columns // 32
        blocks, scales = (reader.read(name, expert * size, size) for name, size in zip(names, sizes, strict=True))
        values = mxfp4(blocks, scales, columns)
        _check_finite(values, expert * values.size, Tensor(names[1], "MXFP4", (expert + 1, rows, columns), 0, 0))
        return values

    return Whole(rows, columns, load, alternating)


class _PlusOne:
    """A matrix plus 1: the weight of a norm that multiplies by 1 + weight."""

    def __init__(self, inner: _Stored) -> None:
        self._inner = inner
        self.rows, self.columns = inner.rows, inner.columns

    def read(self, start: int, stop: int) -> Floats:
        return self._inner.read(start, stop) + np.float32(1)

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        return None


class _Rearranged:
    """A tensor read whole, once, and kept as it is stored; its rows (or columns, transposed) in another order."""

    def __init__(self, reader: Reader, name: str, order: np.ndarray[tuple[int], np.dtype[np.intp]], transposed: bool = False) -> None:
        self._reader, self._tensor, self._order, self._transposed = reader, reader.tensors[name], order, transposed
        self.rows = len(order)
        self.columns = self._tensor.shape[0] if transposed else _width(self._tensor.shape)
        self._raw: Bytes | None = None

    def read(self, start: int, stop: int) -> Floats:
        tensor, encoding = self._tensor, _encoding(self._tensor)
        if self._raw is None:
            self._raw = self._reader.read(tensor.name, 0, tensor.size)
            for at in range(0, tensor.size, WIDEST * encoding.size):
                values = encoding.decode(self._raw[at : at + WIDEST * encoding.size])
                _check_finite(values, at // encoding.size * encoding.elements, tensor)
        stored = self._raw.reshape(tensor.shape[0], -1, encoding.size)
        rows = (stored.swapaxes(0, 1) if self._transposed else stored)[self._order[start:stop]]
        return encoding.decode(np.ascontiguousarray(rows).ravel()).reshape(stop - start, self.columns)

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        return None


class _Joined:
    """Matrices below each other."""

    def __init__(self, parts: list[_Stored]) -> None:
        self._parts = parts
        self.rows, self.columns = sum(part.rows for part in parts), parts[0].columns
        self._encoding = parts[0].encoding if len({id(part.encoding) for part in parts}) == 1 else None

    def read(self, start: int, stop: int) -> Floats:
        return np.concatenate([part.read(first, last) for part, first, last in self._within(start, stop)])

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        def rows() -> Bytes:
            return np.concatenate([part.raw(first, last) for part, first, last in self._within(start, stop)])

        return None if self._encoding is None else self._encoding.repack(rows, format)

    def _within(self, start: int, stop: int) -> Iterator[tuple[_Stored, int, int]]:
        """The parts that rows start .. stop are in, each with its own rows of them."""
        above = 0
        for part in self._parts:
            first, last = max(start - above, 0), min(stop - above, part.rows)
            if first < last:
                yield part, first, last
            above += part.rows


def _check_finite(values: Floats, first: int, tensor: Tensor) -> None:
    """Raises NumericalError unless all values are finite. first: the place in the tensor of the first one."""
    if not values.size or np.isfinite(values.min()) and np.isfinite(values.max()):
        return
    at = int(np.flatnonzero(~np.isfinite(values))[0])
    place = [int(i) for i in np.unravel_index(first + at, tensor.shape)]
    raise NumericalError(f"tensor {shown(tensor.name)}", f"it holds {values.flat[at]} at {place}", "Get the model again")
