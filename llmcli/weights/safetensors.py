"""Safetensors files: a strict check of the header, then tensors read piece by piece. This is the trust boundary.

    8 bytes  header length n, little-endian
    n bytes  JSON: {"name": {"dtype": "F32", "shape": [..], "data_offsets": [from, to]}, .., "__metadata__": {"key": "text"}}
    rest     the tensors' bytes, one after the other, without overlap, gap or tail
Nothing is believed: the whole header is checked against the file's size before anything is allocated. Tensors are read
(pread), not mapped, so a file that is cut off meanwhile is an error and not a signal.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmcli.errors import CorruptFile
from llmcli.weights.opened import Opened

MOST_HEADER_BYTES = 100_000_000
MOST_TENSORS = 100_000
MOST_MARKS = 2_000_000
"""Quotes, commas or brackets in a JSON text: bounds the time and memory of parsing it, before it is parsed."""
MOST_DIMENSIONS = 8
MOST_ELEMENTS = 1 << 60
MOST_NAME = 4096

BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
"""Bits of an element of each type."""


@dataclass(frozen=True)
class Tensor:
    """One entry of a header. Its bytes are start .. start + size of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def shown(name: object) -> str:
    """A name from a file as it may stand in a message: quoted, in ASCII, without control characters, not too long."""
    text = str(name)
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


class File(Opened):
    """An open safetensors file whose header has been checked.

    Raises NotFound, AccessDenied, or CorruptFile naming the file and what is wrong with it."""

    def _check(self) -> None:
        self.header = self._read_header()
        self.data_start = 8 + len(self.header)
        self.metadata, self.tensors = check_header(self.header, self.size - self.data_start, str(self.path))

    def _read_header(self) -> bytes:
        if self.size < 8:
            raise CorruptFile(str(self.path), f"it has {self.size} bytes, too few for a safetensors file")
        length = int.from_bytes(self.read(0, 8).tobytes(), "little")
        if not 2 <= length <= MOST_HEADER_BYTES:
            raise CorruptFile(str(self.path), f"its header length is {length:,}: it is not a safetensors file")
        if length > self.size - 8:
            raise CorruptFile(str(self.path), f"its header has {length:,} bytes and the file only {self.size:,}: it was cut off")
        return self.read(8, length).tobytes()


def write_tensors(path: Path, file: File, names: Collection[str]) -> None:
    """A safetensors file of some of another file's tensors; it appears whole or not at all. OSError passes through."""
    header, at = {}, 0
    for name in names:
        tensor = file.tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + tensor.size]}
        at += tensor.size
    raw = json.dumps(header).encode()
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            tensor = file.tensors[name]
            for start in range(0, tensor.size, 1 << 20):
                out.write(file.read(tensor.start + start, min(1 << 20, tensor.size - start)).data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def check_header(header: bytes, data_size: int, path: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors, by name and in the order of their bytes, of a file with data_size bytes of data.

    Raises CorruptFile unless the header is exactly what the format allows."""

    def wrong(why: str) -> CorruptFile:
        return CorruptFile(path, why)

    try:
        data = parse_object(header)
    except ValueError as error:
        raise wrong(f"its header is not valid: {error}") from error
    metadata = data.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise wrong("its __metadata__ is not a mapping of texts to texts")
    if len(data) > MOST_TENSORS:
        raise wrong(f"it has {len(data):,} tensors, and llm reads at most {MOST_TENSORS:,}")
    start = 8 + len(header)
    found = []
    for name, entry in data.items():
        if len(name) > MOST_NAME:
            raise wrong(f"a tensor's name has {len(name):,} characters")
        try:
            found.append(_tensor(name, entry, start))
        except ValueError as error:
            raise wrong(f"tensor {shown(name)}: {error}") from error
    found.sort(key=lambda tensor: (tensor.start, tensor.size))
    end = start
    for tensor in found:
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a gap before it"
            raise wrong(f"tensor {shown(tensor.name)} {what}")
        end += tensor.size
    if end != start + data_size:
        what = "cut off" if end > start + data_size else "longer than its tensors"
        raise wrong(f"it is {what}: its header describes {end - start:,} bytes of data and it has {data_size:,}")
    return metadata, {tensor.name: tensor for tensor in found}


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, starts with {, no key twice, no NaN, not too many entries. Raises ValueError
    saying what is wrong."""
    if not text.startswith(b"{"):
        raise ValueError("it does not start with {")
    if any(text.count(mark) > MOST_MARKS for mark in (b'"', b",", b"[", b"{")):
        raise ValueError("it has too many entries")
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at byte {error.pos:,})") from error
    return cast(dict[str, Any], data)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is there twice")
    for name, value in pairs:
        if _SURROGATE.search(name) or (isinstance(value, str) and _SURROGATE.search(value)):
            raise ValueError(f"{shown(name)} holds half a character")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _tensor(name: str, entry: Any, data_start: int) -> Tensor:
    """One checked entry; whether it fits the others is for the caller to see. Raises ValueError."""
    if not (isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}):
        raise ValueError("its entry is not one of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in BITS):
        raise ValueError(f"unknown type {shown(dtype)}")
    if not (_counts(shape) and len(shape) <= MOST_DIMENSIONS):
        raise ValueError(f"its shape is not a list of at most {MOST_DIMENSIONS} sizes")
    if not (_counts(offsets) and len(offsets) == 2):
        raise ValueError("its data_offsets are not two positions")
    elements, bound = 1, 1
    for size in shape:
        elements, bound = elements * size, bound * max(size, 1)
    if bound > MOST_ELEMENTS:
        raise ValueError("its shape is too large")
    begin, end = offsets
    if elements * BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"{dtype} {list(shape)} does not take the {end - begin:,} bytes that it has")
    return Tensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MOST_ELEMENTS for value in values)
