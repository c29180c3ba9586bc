"""The packed file: a whole model in one safetensors file, ready to be read into memory and used as stored.

    tensors    all U8, one-dimensional; the data and every tensor begin at a multiple of 64 bytes; first the files
               ("file:tokenizer.json", padded with zeros), then the weights in the plan's order
    metadata   texts: format_version, name, quantization, source, revision, created, llm (version), spec (the model's
               description, JSON), tensors (JSON: name -> format, logical shape, size without padding, checksum, sha256),
               header_sha256 (of the header with this value as 64 zeros)
So any safetensors tool can open it, and no bit of it can change unnoticed. `writer.py` makes it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from llmcli.errors import CorruptFile, HashMismatch, LlmError, ModelFileError, OutOfMemory
from llmcli.formats import format as formats
from llmcli.formats.format import Bytes, PackedTensor, padded
from llmcli.plan import Weight
from llmcli.weights.checksum import MASK, checksum
from llmcli.weights.present import QUANTIZATIONS
from llmcli.weights.safetensors import File, parse_object, shown

VERSION = 1
ALIGNMENT = 64
TEXTS = ("name", "quantization", "source", "revision", "created", "llm", "spec")
"""The metadata that a file must have beside format_version, tensors and header_sha256."""
FILE = "file:"
PIECE = 1 << 20
"""Bytes read and checked at once: they are still in the cache when they are summed."""

Progress = Callable[[int, int], None]
"""(done, of how many), in bytes or pieces."""
FastChecksum = Callable[[int, int, int], int]
"""(address, size, first word) -> the checksum of those bytes."""


@dataclass(frozen=True)
class Entry:
    """What is known of one tensor. format: a weight format, 'vector' or 'file'; size: bytes without padding;
    checksum (64 bits) and sha256, in hexadecimal, of the stored bytes with their padding."""

    format: str
    shape: tuple[int, ...]
    size: int
    checksum: str = "0" * 16
    sha256: str = "0" * 64

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return padded(self.size, ALIGNMENT)

    @staticmethod
    def of(format: str, shape: tuple[int, ...]) -> Entry:
        """The entry of a weight of this format and shape. Raises CorruptFile for an unknown format."""
        if format in ("vector", "file"):
            return Entry(format, shape, prod(shape) * (4 if format == "vector" else 1))
        rows, columns = shape[-2:]
        return Entry(format, shape, prod(shape[:-2]) * formats.get(format).size(rows, columns))


def make_header(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> bytes:
    """The file's first bytes, up to the data. Their number depends on the entries' names, formats and shapes alone."""
    table = json.dumps({name: asdict(entry) for name, entry in entries.items()}, separators=(",", ":"))
    texts = {"format_version": str(VERSION), **metadata, "tensors": table, "header_sha256": _NO_HASH}
    tensors, at = {}, 0
    for name, entry in entries.items():
        tensors[name] = {"dtype": "U8", "shape": [entry.stored], "data_offsets": [at, at + entry.stored]}
        at += entry.stored
    header = json.dumps({"__metadata__": texts, **tensors}, separators=(",", ":")).encode()
    header = header.ljust(padded(8 + len(header), ALIGNMENT) - 8)
    header = header.replace(_HASH_KEY + _NO_HASH.encode(), _HASH_KEY + hashlib.sha256(header).hexdigest().encode())
    return len(header).to_bytes(8, "little") + header


_NO_HASH = "0" * 64
_HASH_KEY = b'"header_sha256":"'  # quotes inside other texts are escaped, so this is found only once


class Packed:
    """An open packed file: everything but the tensors' bytes has been read and checked. Close it, or use it in a `with`.

    Raises NotFound, AccessDenied, CorruptFile, HashMismatch (the header), ModelFileError (a newer version)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = File(path)
        try:
            self._check_metadata(self._file.metadata)
            self.entries = self._check_entries(self._file.metadata)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def weights_size(self) -> int:
        """Bytes that the weights take in memory."""
        return sum(entry.stored for entry in self.entries.values() if entry.format != "file")

    @property
    def files(self) -> list[str]:
        """The names of the files it holds."""
        return [name.removeprefix(FILE) for name, entry in self.entries.items() if entry.format == "file"]

    def file(self, name: str) -> bytes:
        """The contents of one of `files`. Raises CorruptFile where it is not among them, HashMismatch."""
        if FILE + name not in self.entries:
            raise CorruptFile(str(self.path), f"it holds no {name}")
        entry, tensor = self.entries[FILE + name], self._file.tensors[FILE + name]
        data = self._file.read(tensor.start, tensor.size)
        self._compare(FILE + name, checksum(data))
        return data[: entry.size].tobytes()

    def read(self, name: str, start: int, size: int) -> Bytes:
        """Bytes start .. start + size of a tensor as they are stored, u8 [size]; nothing is compared."""
        return self._file.read(self._file.tensors[name].start + start, size)

    def check(self, weights: Mapping[str, Weight]) -> None:
        """Raises CorruptFile unless the file holds exactly a plan's weights, in shapes and formats that fit them."""
        have = {name: entry for name, entry in self.entries.items() if entry.format != "file"}
        for name in sorted(weights.keys() ^ have.keys()):
            raise CorruptFile(str(self.path), f"weight {shown(name)} is {'missing' if name in weights else 'not part of the model'}")
        for name, weight in weights.items():
            format, shape = have[name].format, have[name].shape
            if shape != weight.shape or (format == "vector") != (weight.kind in ("vector", "table")):
                raise CorruptFile(
                    str(self.path), f"weight {shown(name)} is {format} {list(shape)}, not a {weight.kind} {list(weight.shape)}"
                )

    def load(
        self, verify: bool = True, fast: FastChecksum | None = None, threads: int = 2, progress: Progress | None = None
    ) -> dict[str, PackedTensor]:
        """Reads all weights into one new piece of memory. fast: computes checksums in place of NumPy.

        Raises HashMismatch naming a tensor whose bytes are not those that were written, CorruptFile, OutOfMemory."""
        names = [name for name, entry in self.entries.items() if entry.format != "file"]
        try:
            memory = mmap.mmap(-1, max(1, self.weights_size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemory(f"no room for {self.weights_size / 2**20:,.0f} MiB of weights", str(error)) from error
        with suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        data = np.frombuffer(memory, np.uint8)
        base, view = data.ctypes.data, memoryview(memory)
        tensors, pieces, start = {}, [], 0
        for number, name in enumerate(names):
            entry, stored = self.entries[name], self._file.tensors[name]
            tensors[name] = PackedTensor(entry.format, entry.shape, data[start : start + stored.size])
            pieces += [(number, start, at, min(PIECE, stored.size - at), stored.start) for at in range(0, stored.size, PIECE)]
            start += stored.size
        sums = [0] * len(names)
        lock = threading.Lock()

        def read(piece: tuple[int, int, int, int, int]) -> None:
            number, first, at, size, position = piece
            self._file.read_into(view[first + at : first + at + size], position + at)
            if verify:
                part = fast(base + first + at, size, at // 8) if fast else checksum(data[first + at : first + at + size], at // 8)
                with lock:
                    sums[number] += part

        _share(read, pieces, threads, progress)
        if verify:
            for name, total in zip(names, sums, strict=True):
                self._compare(name, total)
        return tensors

    def verify(self, progress: Progress | None = None) -> None:
        """Compares every tensor's SHA-256 and checksum. Raises HashMismatch naming the first that differs."""
        done, total = 0, sum(tensor.size for tensor in self._file.tensors.values())
        for name, tensor in self._file.tensors.items():
            digest, summed = hashlib.sha256(), 0
            for at in range(0, tensor.size, PIECE):
                data = self._file.read(tensor.start + at, min(PIECE, tensor.size - at))
                digest.update(data.data)
                summed += checksum(data, at // 8)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            self._compare(name, summed)
            if digest.hexdigest() != self.entries[name].sha256:
                raise self._damaged(name)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_metadata(self, texts: Mapping[str, str]) -> None:
        version = texts.get("format_version", "")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise CorruptFile(str(self.path), "it is not a file that llm made", "Use llm import on the folder of the original model")
        if int(version) > VERSION:
            raise ModelFileError(str(self.path), f"it was made by a newer llm (format {version}, this llm reads {VERSION})", "Update llm")
        missing = [name for name in (*TEXTS, "tensors", "header_sha256") if name not in texts]
        if missing:
            raise CorruptFile(str(self.path), f"its metadata has no {missing[0]}")
        before, key, after = self._file.header.partition(_HASH_KEY)
        if hashlib.sha256(before + key + _NO_HASH.encode() + after[64:]).hexdigest() != texts["header_sha256"]:
            raise HashMismatch(str(self.path), "its header is not the one that was written: the file is damaged")
        if texts["quantization"] not in QUANTIZATIONS:
            raise CorruptFile(str(self.path), f"unknown quantization {shown(texts['quantization'])}")
        if not texts["name"].isprintable():
            raise CorruptFile(str(self.path), f"its name is {shown(texts['name'])}, which no llm gives")
        self.name, self.quantization, self.spec = texts["name"], texts["quantization"], texts["spec"]
        self.source, self.revision, self.created, self.llm = (texts[key] for key in ("source", "revision", "created", "llm"))

    def _check_entries(self, texts: Mapping[str, str]) -> dict[str, Entry]:
        """The table of tensors, which must agree with the tensors that are there."""
        try:
            table = parse_object(texts["tensors"].encode())
            entries = {name: _entry(data) for name, data in table.items()}
        except (ValueError, LlmError) as error:
            raise CorruptFile(str(self.path), f"its table of tensors is not valid: {error}") from error
        tensors = self._file.tensors
        if list(entries) != list(tensors) or self._file.data_start % ALIGNMENT:
            raise CorruptFile(str(self.path), "its table of tensors does not fit its tensors")
        for name, entry in entries.items():
            tensor = tensors[name]
            if tensor.dtype != "U8" or tensor.size != entry.stored or (entry.format == "file") != name.startswith(FILE):
                raise CorruptFile(str(self.path), f"tensor {shown(name)} does not have the size of its {entry.format} {list(entry.shape)}")
        return entries

    def _compare(self, name: str, total: int) -> None:
        if f"{total & MASK:016x}" != self.entries[name].checksum:
            raise self._damaged(name)

    def _damaged(self, name: str) -> HashMismatch:
        return HashMismatch(f"{self.path}: tensor {shown(name)}", "its bytes are not those that were written: the file is damaged")


def open(path: Path) -> Packed:
    """Opens a packed file; see Packed."""
    return Packed(path)


def _entry(data: Any) -> Entry:
    """An entry from the table, consistent in itself. Raises ValueError or CorruptFile."""
    fields = {"format": str, "shape": list, "size": int, "checksum": str, "sha256": str}
    if not (isinstance(data, dict) and data.keys() == fields.keys() and all(type(data[name]) is kind for name, kind in fields.items())):
        raise ValueError("an entry does not have the fields of one")
    shape, least = tuple(data["shape"]), 1 if data["format"] in ("vector", "file") else 2
    if not (least <= len(shape) <= 3 and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)):
        raise ValueError(f"the shape {list(shape)[:4]} is not possible")
    if not (re.fullmatch("[0-9a-f]{16}", data["checksum"]) and re.fullmatch("[0-9a-f]{64}", data["sha256"])):
        raise ValueError("a checksum is not a number")
    if Entry.of(data["format"], shape).size != data["size"]:
        raise ValueError(f"{data['format']} {list(shape)} does not have {data['size']:,} bytes")
    return Entry(data["format"], shape, data["size"], data["checksum"], data["sha256"])


def _share(work: Callable[[Any], None], pieces: list[tuple[int, int, int, int, int]], threads: int, progress: Progress | None) -> None:
    """Calls work(piece) for all pieces on several threads, this one among them; raises the first error."""
    ticket = itertools.count()
    errors: list[BaseException] = []

    def run(report: Progress | None) -> None:
        try:
            while (number := next(ticket)) < len(pieces) and not errors:
                work(pieces[number])
                if report is not None:
                    report(number + 1, len(pieces))
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run, args=(None,), daemon=True) for _ in range(min(threads, len(pieces)) - 1)]
    for other in others:
        other.start()
    run(progress)
    for other in others:
        other.join()
    if errors:
        raise errors[0]
    if progress is not None:
        progress(len(pieces), len(pieces))
