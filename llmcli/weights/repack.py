"""A packed file's weights as a checkpoint of float32 tensors, decoded a few rows at a time.

So `writer.write_model` makes a smaller model from one that is here, with one packed weight and some rows in memory. Float
formats decode to what they were made from; int8 to values that have been rounded once already.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmcli.formats import format as formats
from llmcli.formats.format import Bytes, aligned
from llmcli.plan import Weight
from llmcli.weights import convert
from llmcli.weights.checksum import checksum
from llmcli.weights.packed import Packed
from llmcli.weights.safetensors import Tensor

ITEM = 4
"""Bytes of a float32."""


class Unpacked:
    """The weights of an open packed file as a convert.Reader: each under its own name, in its shape, as F32."""

    def __init__(self, file: Packed) -> None:
        self._file = file
        shapes = {name: entry.shape for name, entry in file.entries.items() if entry.format != "file"}
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(name, "F32", shape, 0, ITEM * int(np.prod(shape, dtype=np.int64))) for name, shape in shapes.items()
        }

    def read(self, name: str, start: int, size: int) -> Bytes:
        """Bytes start .. start + size of a tensor as float32, u8 [size]. Of a matrix: whole rows, the first of them at a multiple
        of 16 in it."""
        entry = self._file.entries[name]
        if entry.format == "vector":
            return self._file.read(name, start, size)
        module, (height, width) = formats.get(entry.format), entry.shape[-2:]
        rows = size // (ITEM * width)
        number, first = divmod(start // (ITEM * width), height)
        at = number * module.size(height, width)
        out, done = aligned(module.size(rows, width)), 0
        sections = zip(module.sections(height, width), module.sections(first, width), module.sections(rows, width), strict=True)
        for whole, before, own in sections:
            out[done : done + own] = self._file.read(name, at + before, own)
            at, done = at + whole, done + own
        return np.ascontiguousarray(module.unpack(out, rows, width)).view(np.uint8).ravel()


def same_vectors(file: Packed, weights: Mapping[str, Weight], sources: Mapping[str, convert.Source], reader: convert.Reader) -> bool:
    """Whether a checkpoint's norms, biases and tables are those of a packed file: every quantization stores them alike, and no
    training leaves all of them as they are."""
    for name, entry in file.entries.items():
        if entry.format == "vector":
            data = aligned(entry.stored)
            data[entry.size :] = 0
            parts = [matrix.read(0, matrix.rows).ravel() for matrix in convert.matrices(weights[name], sources[name], reader)]
            data[: entry.size].view(np.float32)[:] = np.concatenate(parts)
            if f"{checksum(data):016x}" != entry.checksum:
                return False
    return True
