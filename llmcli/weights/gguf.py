"""GGUF files: a strict check of the header, then tensors read piece by piece. This is the trust boundary.

    4 bytes  "GGUF"
    u32      version: 2 or 3
    u64 u64  number of tensors, number of metadata entries
    entries  name, type, value                                    a text is its length (u64) and its bytes; all is little-endian
    tensors  name, dimensions (u32), sizes (u64, columns first), type (u32), offset (u64)
    padding  up to a multiple of the alignment (general.alignment, or 32)
    data     the tensors' bytes, each padded like this
Nothing is believed: every count is held against the bytes that are left before anything is allocated for it, and all
tensors must lie in the file, one after the other. Files are read (pread), not mapped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np

from llmcli.errors import CorruptFile, UnsupportedModel
from llmcli.formats.format import Bytes, padded
from llmcli.weights.opened import Opened
from llmcli.weights.safetensors import MOST_ELEMENTS, MOST_NAME, MOST_TENSORS, Tensor, shown

MAGIC = b"GGUF"
MOST_HEADER_BYTES = 256 << 20
MOST_TEXT = 16 << 20
"""Bytes of one text: the longest are chat templates."""
MOST_ENTRIES = 10_000
MOST_ITEMS = 8_000_000
"""Numbers and texts in all arrays together: bounds the time and memory that they take in Python."""
MOST_DIMENSIONS = 4
MOST_EXPERTS = 10_000
MOST_ALIGNMENT = 1 << 20
WINDOW = 1 << 20
"""Bytes of the header that are read at once."""

_SINGLE, _BOOL, _TEXT, _ARRAY = 6, 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", _SINGLE: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""Type number of a metadata value -> its struct letter."""

Value = int | float | bool | str | list[Any]


class File(Opened):
    """An open GGUF file whose header has been checked: metadata, tensors (sizes rows first), version.

    Raises NotFound, AccessDenied, CorruptFile naming the file and what is wrong with it, or UnsupportedModel."""

    def _check(self) -> None:
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self._read_header(_Cursor(self))

    def vector(self, name: str) -> list[float]:
        """The numbers of a small f32 vector; none where the file has no such tensor."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return []
        if tensor.dtype != "F32" or len(tensor.shape) != 1 or tensor.size > WINDOW:
            self.wrong(f"tensor {shown(name)} is {tensor.dtype} {list(tensor.shape)}, not a few numbers")
        return [float(number) for number in self.read(tensor.start, tensor.size).view(np.float32)]

    def wrong(self, why: str) -> NoReturn:
        raise CorruptFile(str(self.path), why)

    def _read_header(self, cursor: _Cursor) -> None:
        if self.size < 24 or cursor.take(4) != MAGIC:
            self.wrong("it is not a GGUF file")
        version = cursor.number("I")
        if version not in (2, 3):
            swapped = version and not version & 0xFFFF
            why = "its numbers are big-endian" if swapped else f"it is of version {version:,}"
            raise UnsupportedModel(str(self.path), f"{why}, and llm reads little-endian versions 2 and 3", "Get the file anew")
        tensors, entries = cursor.number("Q"), cursor.number("Q")
        for count, most, what in ((tensors, MOST_TENSORS, "tensors"), (entries, MOST_ENTRIES, "metadata entries")):
            if count > most:
                self.wrong(f"it claims {count:,} {what}, more than any model has")
        for _ in range(entries):
            name = cursor.name("a metadata name")
            if name in self.metadata:
                self.wrong(f"{shown(name)} is there twice")
            self.metadata[name] = cursor.value(cursor.number("I"), name)
        found = [self._tensor(cursor) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not (type(alignment) is int and 8 <= alignment <= MOST_ALIGNMENT and alignment % 8 == 0):
            self.wrong(f"general.alignment is {shown(alignment)}, not a multiple of 8")
        self._place(found, padded(cursor.position, alignment), alignment)

    def _tensor(self, cursor: _Cursor) -> Tensor:
        """One entry of the list of tensors; its start counts from the beginning of the data."""
        import gguf

        name = cursor.name("a tensor's name")
        count = cursor.number("I")
        if not 1 <= count <= MOST_DIMENSIONS:
            self.wrong(f"tensor {shown(name)} has {count:,} dimensions")
        sizes = [cursor.number("Q") for _ in range(count)]
        number, start = cursor.number("I"), cursor.number("Q")
        if prod(max(size, 1) for size in sizes) > MOST_ELEMENTS or 0 in sizes:
            self.wrong(f"tensor {shown(name)} has an impossible shape")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise UnsupportedModel(f"tensor {shown(name)} of {self.path}", f"it is of the unknown type {number}", "Update llm") from None
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if sizes[0] % elements:
            self.wrong(f"tensor {shown(name)} has {sizes[0]:,} columns, and blocks of {kind.name} have {elements}")
        return Tensor(name, kind.name, tuple(sizes[::-1]), start, prod(sizes) // elements * size)

    def _place(self, tensors: list[Tensor], data_start: int, alignment: int) -> None:
        """Fills `tensors`, whose bytes must follow each other from data_start to the end of the file."""
        end = data_start
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            start = data_start + tensor.start
            if start != padded(end, alignment):
                self.wrong(f"tensor {shown(tensor.name)} begins at {start:,}, not at {padded(end, alignment):,} where the one before ends")
            end = start + tensor.size
            if end > self.size:
                self.wrong(f"it has {self.size:,} bytes, and tensor {shown(tensor.name)} needs {end:,}: it was cut off")
            if tensor.name in self.tensors:
                self.wrong(f"tensor {shown(tensor.name)} is there twice")
            self.tensors[tensor.name] = Tensor(tensor.name, tensor.dtype, tensor.shape, start, tensor.size)
        if self.size > padded(end, alignment):
            self.wrong(f"{self.size - end:,} bytes after its last tensor belong to none")


class _Cursor:
    """Reads a header from front to back, through a window, and never past its end or its limits."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._limit = min(file.size, MOST_HEADER_BYTES)
        self._window = b""
        self._start = self._at = 0
        self._items = MOST_ITEMS

    @property
    def position(self) -> int:
        """The place in the file of the next byte."""
        return self._start + self._at

    def take(self, count: int) -> bytes:
        if count > len(self._window) - self._at:
            self._start, self._at = self.position, 0
            left = self._limit - self._start
            if count > left:
                whole = self._limit == self._file.size
                self._file.wrong("it was cut off inside its header" if whole else f"its header has more than {self._limit:,} bytes")
            self._window = self._file.read(self._start, min(max(count, WINDOW), left)).tobytes()
        self._at += count
        return self._window[self._at - count : self._at]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter)))[0]

    def name(self, what: str) -> str:
        try:
            found = self._text(MOST_NAME, what).decode()
        except UnicodeDecodeError:
            self._file.wrong(f"{what} is not UTF-8 text")
        if not found.isprintable() or not found:
            self._file.wrong(f"{what} is {shown(found)}")
        return found

    def value(self, kind: int, name: str) -> Value:
        """A metadata value of this type. Broken UTF-8 becomes U+FFFD: descriptions hold anything."""
        if kind == _TEXT:
            return self._text(MOST_TEXT, shown(name)).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(name)
        if kind not in _NUMBERS:
            self._file.wrong(f"{shown(name)} is of the unknown type {kind}")
        found = self.number(_NUMBERS[kind])
        if kind == _SINGLE:  # the decimal number that was meant: 1e-05, and not the 9.999999747378752e-06 that float32 makes of it
            return float(str(np.float32(found)))
        return self._flag(found, name) if kind == _BOOL else found

    def _array(self, name: str) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind != _TEXT and kind not in _NUMBERS:
            self._file.wrong(f"{shown(name)} is an array of the type {kind}")
        self._items -= count
        if self._items < 0:
            self._file.wrong(f"its arrays have more than {MOST_ITEMS:,} items")
        if kind == _TEXT:
            return [self._text(MOST_TEXT, shown(name)).decode("utf-8", "replace") for _ in range(count)]
        letter = _NUMBERS[kind]
        found = list(struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(letter))))
        return [self._flag(item, name) for item in found] if kind == _BOOL else found

    def _text(self, most: int, what: str) -> bytes:
        size = self.number("Q")
        if size > most:
            self._file.wrong(f"{what} has {size:,} bytes, more than the {most:,} it may have")
        return self.take(size)

    def _flag(self, number: int, name: str) -> bool:
        if number > 1:
            self._file.wrong(f"{shown(name)} is {number}, not true or false")
        return bool(number)


class Checkpoint:
    """The tensors of a GGUF file as weights are made from them (a convert.Reader).

    Two of GGUF's habits are undone here. A tensor of all experts, `x_exps.weight` [E, N, K], becomes E tensors
    `x.{e}.weight`, as older files have them. The rows of `interleaved` tensors (ending -> heads) have the two halves of
    each head interleaved, for rotating neighbouring columns; they are put back."""

    def __init__(self, file: File, interleaved: Mapping[str, int]) -> None:
        self._file = file
        self.tensors: dict[str, Tensor] = {}
        self._heads: dict[str, int] = {}
        for name, tensor in file.tensors.items():
            for part in _experts(tensor):
                if part.name in self.tensors:
                    file.wrong(f"tensor {shown(part.name)} is there twice")
                self.tensors[part.name] = part
            if len(self.tensors) > MOST_TENSORS:
                file.wrong(f"it has more than {MOST_TENSORS:,} tensors, those of experts counted singly")
            heads = next((heads for ending, heads in interleaved.items() if name.endswith(ending)), 0)
            if heads and name in self.tensors:
                if tensor.shape[0] % (2 * heads):
                    file.wrong(f"the {tensor.shape[0]:,} rows of {shown(name)} are not {heads:,} heads of an even size")
                self._heads[name] = heads

    def read(self, name: str, start: int, size: int) -> Bytes:
        """Bytes start .. start + size of a tensor, u8 [size]; whole rows where it is interleaved."""
        tensor = self.tensors[name]
        if name not in self._heads:
            return self._file.read(tensor.start + start, size)
        rows = tensor.shape[0]
        width, head = tensor.size // rows, rows // self._heads[name]
        wanted = np.arange(start // width, (start + size) // width)
        place = wanted % head
        stored = wanted - place + place % (head // 2) * 2 + place // (head // 2)
        first = int(stored.min())
        raw = self._file.read(tensor.start + first * width, (int(stored.max()) + 1 - first) * width)
        return np.ascontiguousarray(raw.reshape(-1, width)[stored - first]).reshape(-1)

    def close(self) -> None:
        self._file.close()


def _experts(tensor: Tensor) -> list[Tensor]:
    """The tensors of the single experts; the tensor itself where it is not of all experts."""
    stem, found, _ = tensor.name.partition("_exps.")
    if not found or len(tensor.shape) < 2 or tensor.shape[0] > MOST_EXPERTS:
        return [tensor]
    count, *shape = tensor.shape
    size = tensor.size // count
    ending = tensor.name.removeprefix(f"{stem}_exps.")
    return [Tensor(f"{stem}.{e}.{ending}", tensor.dtype, tuple(shape), tensor.start + e * size, size) for e in range(count)]
