"""Makes a packed file from a checkpoint: one weight at a time, a few rows at a time, whole or not at all.

Sizes are known from shapes and formats, so every tensor has its place behind room for the header, which follows when
all checksums are known. At most one packed weight, one tensor that has to be rearranged, and a few rows are in memory.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from llmcli import __version__
from llmcli.errors import NumericalError
from llmcli.formats import format as formats
from llmcli.formats import layout
from llmcli.formats.format import ROWS, Bytes, Floats, aligned, padded
from llmcli.plan import Weight
from llmcli.weights import convert
from llmcli.weights.atomic import replacing
from llmcli.weights.checksum import checksum
from llmcli.weights.convert import Matrix, Reader, Source
from llmcli.weights.packed import ALIGNMENT, FILE, Entry, Progress, make_header
from llmcli.weights.safetensors import Tensor

FORMATS = {
    "int4": {"matrix": "int4", "experts": "int4", "embedding": "int8", "head": "int8"},
    "int8": {"matrix": "int8", "experts": "int8", "embedding": "int8", "head": "int8"},
    "none": {},
}
"""Quantization -> the format of each kind of weight. Kinds that are not named keep the float type they come in."""
Packer = Callable[[str, Floats], Bytes]
"""(format, f32 [N, K]) -> the packed matrix, as the format's own `pack` makes it."""
ALWAYS = {"vector": "vector", "table": "vector", "router": "f32"}
"""The format of these kinds, whatever the quantization."""


def choose(weight: Weight, source: Source, tensors: Mapping[str, Tensor], quantization: str, keep: bool = False) -> str:
    """The format for a weight. keep: matrices as they are stored, where a format of ours holds that."""
    if keep and weight.kind in ("matrix", "experts"):
        return convert.stored(source, tensors)
    chosen = ALWAYS.get(weight.kind) or FORMATS[quantization].get(weight.kind)
    return convert.kept(source, tensors, chosen) if chosen else convert.float_format(source, tensors)


def nearest(
    weights: Mapping[str, Weight], sources: Mapping[str, Source], tensors: Mapping[str, Tensor], ignored: tuple[str, ...] = ()
) -> str:
    """What a model whose matrices are kept as they are stored is called: 'int4' where most of their numbers have four bits. Arguments
    and errors are those of write_model."""
    convert.check(weights, sources, tensors, ignored)
    sizes = {4: 0, 8: 0}
    for name, weight in weights.items():
        if weight.kind in ("matrix", "experts"):
            sizes[formats.get(convert.stored(sources[name], tensors)).FORMAT.bits] += math.prod(weight.shape)
    return "int4" if sizes[4] > sizes[8] else "int8"


def write_model(
    path: Path,
    weights: Mapping[str, Weight],
    sources: Mapping[str, Source],
    reader: Reader,
    quantization: str,
    metadata: Mapping[str, str],
    files: Mapping[str, bytes],
    *,
    ignored: tuple[str, ...] = (),
    progress: Progress | None = None,
    waiting: Callable[[int], None] | None = None,
    pack: Packer | None = None,
    keep: bool = False,
) -> None:
    """Writes the model to `path`, replacing what is there once all is written.

    weights: a plan's; sources: how each is made from the reader's tensors; ignored: endings of tensor names that need
    not be used; metadata: name, source, revision and spec (packed.TEXTS; 'created' is today unless given); files: the
    contents of files that go along; progress: called with bytes; waiting: see atomic.replacing;
    pack: does it in place of the formats; keep: see `choose`.
    Raises CorruptFile, UnsupportedModel (before anything is written), NumericalError, DiskError."""
    contents = Contents(weights, sources, reader.tensors, quantization, metadata, files, ignored, pack, keep)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and count:
            progress(done, contents.total)

    with replacing(path, contents.size, waiting) as descriptor:
        for name in contents.entries:
            if name in weights:
                contents.write(descriptor, name, reader, advance)
            else:
                contents.write_file(descriptor, name)
                advance(contents.entries[name].stored)
        contents.finish(descriptor)


class Contents:
    """What a packed file will hold, and where: all of it is known before the first byte, so weights come in any order.

    Arguments and errors are those of write_model; reading no tensor, it needs their shapes and types only."""

    def __init__(
        self,
        weights: Mapping[str, Weight],
        sources: Mapping[str, Source],
        tensors: Mapping[str, Tensor],
        quantization: str,
        metadata: Mapping[str, str],
        files: Mapping[str, bytes],
        ignored: tuple[str, ...] = (),
        pack: Packer | None = None,
        keep: bool = False,
    ) -> None:
        convert.check(weights, sources, tensors, ignored)
        self.weights, self.sources, self._files = weights, sources, files
        self._packer = pack or _plain
        self.entries = {FILE + name: Entry.of("file", (len(data),)) for name, data in files.items()}
        for name, weight in weights.items():
            self.entries[name] = Entry.of(choose(weight, sources[name], tensors, quantization, keep), weight.shape)
        created = datetime.date.today().isoformat()
        self.same = {"llm": __version__, **metadata, "quantization": quantization}
        """The metadata that does not depend on the day."""
        self.blank = dict(self.entries)
        """The entries, without checksums."""
        self._texts = {"created": created, **self.same}
        at = len(make_header(self._texts, self.entries))
        self.starts: dict[str, int] = {}
        """Where each tensor begins in the file."""
        for name, entry in self.entries.items():
            self.starts[name] = at
            at += entry.stored
        self.size = at
        self.total = sum(entry.stored for entry in self.entries.values())

    def write(self, descriptor: int, name: str, reader: Reader, advance: Callable[[int], None]) -> Entry:
        """Puts one weight at its place; its entry, now with checksums. advance: called with bytes as they are packed."""
        entry, packed = self.entries[name], 0

        def count(size: int) -> None:
            nonlocal packed
            packed += size
            advance(size)

        data = _pack(self.weights[name], entry, self.sources[name], reader, count, self._packer)
        self._place(descriptor, name, data)
        advance(entry.stored - packed)
        return self.entries[name]

    def write_file(self, descriptor: int, name: str) -> None:
        """Puts one of the files at its place."""
        self._place(descriptor, name, _padded(self._files[name.removeprefix(FILE)]))

    def written(self, name: str, checksum: str, sha256: str) -> None:
        """Notes the checksums of a tensor that is at its place."""
        entry = self.entries[name]
        self.entries[name] = Entry(entry.format, entry.shape, entry.size, checksum, sha256)

    def finish(self, descriptor: int) -> None:
        """Writes the header, when all tensors are written."""
        _write(descriptor, np.frombuffer(make_header(self._texts, self.entries), np.uint8), 0)

    def _place(self, descriptor: int, name: str, data: Bytes) -> None:
        _write(descriptor, data, self.starts[name])
        self.written(name, f"{checksum(data):016x}", hashlib.sha256(data.data).hexdigest())


def _pack(weight: Weight, entry: Entry, source: Source, reader: Reader, advance: Callable[[int], None], pack: Packer) -> Bytes:
    """A weight's packed bytes. advance: called with the number of bytes that were added."""
    out = aligned(entry.stored)
    out[entry.size :] = 0
    parts = convert.matrices(weight, source, reader)
    share = entry.size // len(parts)
    for number, matrix in enumerate(parts):
        whole = out[number * share : (number + 1) * share]
        if entry.format == "vector":
            for start, values in convert.chunks(matrix, 1):
                whole.view(np.float32)[start * matrix.columns :][: values.size] = values.ravel()
            advance(len(whole))
        else:
            try:
                _pack_matrix(matrix, entry.format, whole, advance, pack)
            except NumericalError as error:
                raise NumericalError(f"weight {weight.name}: {error.what}", error.why, error.todo) from error
    return out


def _plain(format: str, values: Floats) -> Bytes:
    return formats.get(format).pack(values)


def _pack_matrix(matrix: Matrix, format: str, out: Bytes, advance: Callable[[int], None], pack: Packer) -> None:
    """Packs a matrix a few rows at a time; each lands in its part of every section."""
    module, columns = formats.get(format), matrix.columns
    sections = module.sections(matrix.rows, columns)
    out[sum(sections) :] = 0
    for start, stop in convert.spans(matrix, ROWS):
        packed = matrix.repack(start, stop, format)
        if packed is None:
            packed = pack(format, matrix.read(start, stop))
        own = module.sections(stop - start, columns)
        layout.insert(out, sections, packed, module.sections(start, columns), own)
        advance(sum(own))


def _padded(data: bytes) -> Bytes:
    out = aligned(padded(len(data), ALIGNMENT))
    out[: len(data)] = np.frombuffer(data, np.uint8)
    out[len(data) :] = 0
    return out


def _write(descriptor: int, data: Bytes, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:].data, position + done)
