"""Makes a packed file from a checkpoint: one weight at a time, a few rows at a time, whole or not at all.

Sizes are known from shapes and formats, so the data is written in order behind room for the header, which follows when
all checksums are known. At most one packed weight, one tensor that has to be rearranged, and a few rows are in memory.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from llmcli import __version__
from llmcli.errors import NumericalError
from llmcli.formats import format as formats
from llmcli.formats import layout
from llmcli.formats.format import ROWS, Bytes, aligned, padded
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
ALWAYS = {"vector": "vector", "table": "vector", "router": "f32"}
"""The format of these kinds, whatever the quantization."""


def choose(weight: Weight, source: Source, tensors: Mapping[str, Tensor], quantization: str) -> str:
    """The format for a weight."""
    chosen = ALWAYS.get(weight.kind) or FORMATS[quantization].get(weight.kind)
    return convert.kept(source, tensors, chosen) if chosen else convert.float_format(source, tensors)


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
) -> None:
    """Writes the model to `path`, replacing what is there once all is written.

    weights: a plan's; sources: how each is made from the reader's tensors; ignored: endings of tensor names that need
    not be used; metadata: name, source, revision and spec (packed.TEXTS; 'created' is today unless given); files: the
    contents of files that go along; progress: called with bytes; waiting: see atomic.replacing.
    Raises CorruptFile, UnsupportedModel (before anything is written), NumericalError, DiskError."""
    convert.check(weights, sources, reader.tensors, ignored)
    entries = {FILE + name: Entry.of("file", (len(data),)) for name, data in files.items()}
    for name, weight in weights.items():
        entries[name] = Entry.of(choose(weight, sources[name], reader.tensors, quantization), weight.shape)
    created = datetime.date.today().isoformat()
    texts = {"created": created, "llm": __version__, **metadata, "quantization": quantization}
    start = at = len(make_header(texts, entries))
    total = sum(entry.stored for entry in entries.values())

    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and count:
            progress(done, total)

    with replacing(path, start + total, waiting) as descriptor:
        for name, entry in entries.items():
            if entry.format == "file":
                data = _padded(files[name.removeprefix(FILE)])
            else:
                data = _pack(weights[name], entry, sources[name], reader, advance)
            _write(descriptor, data, at)
            at += entry.stored
            advance(at - start - done)
            sums = f"{checksum(data):016x}", hashlib.sha256(data.data).hexdigest()
            entries[name] = Entry(entry.format, entry.shape, entry.size, *sums)
        _write(descriptor, np.frombuffer(make_header(texts, entries), np.uint8), 0)


def _pack(weight: Weight, entry: Entry, source: Source, reader: Reader, advance: Callable[[int], None]) -> Bytes:
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
                _pack_matrix(matrix, entry.format, whole, advance)
            except NumericalError as error:
                raise NumericalError(f"weight {weight.name}: {error.what}", error.why, error.todo) from error
    return out


def _pack_matrix(matrix: Matrix, format: str, out: Bytes, advance: Callable[[int], None]) -> None:
    """Packs a matrix a few rows at a time; each lands in its part of every section."""
    module, columns = formats.get(format), matrix.columns
    sections = module.sections(matrix.rows, columns)
    out[sum(sections) :] = 0
    for start, stop in convert.spans(matrix, ROWS):
        packed = matrix.repack(start, stop, format)
        if packed is None:
            packed = module.pack(matrix.read(start, stop))
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
