"""A weight format: how a float matrix becomes bytes and back. One file a format, found by its file name.

A format file defines `FORMAT` (this record), and
    sections(rows, columns) -> tuple[int, ...]       bytes of the codes, and of the scales where there are any; each is
                                                     in the order of row tiles (see layout.py)
    size(rows, columns) -> int                       bytes of one packed matrix: their sum, padded to a multiple of 64
    pack(values: f32 [N, K]) -> u8 [size(N, K)]      the oracle in NumPy; backends have faster twins
    unpack(data: u8 [size], rows, columns) -> f32 [N, K]

One layout for every CPU (docs/formats.md has the drawing): rows are padded to 16 and columns to 32 with zeros, and
16 rows lie side by side, so that one 64-byte load feeds 16 output rows and lanes are rows.
    int4   codes [N/16][K/32][4][16 rows][4]: byte (j, row, i) holds column 4j + i of the group in its low nibble
           and column 16 + 4j + i in its high nibble; then scales f16 [N/16][K/32][16 rows]
    int8   codes [N/16][K/32][8][16 rows][4]: byte (j, row, i) is column 4j + i, stored as code + 128; then scales
           as above. Codes are -127..127.
    int4_offset   as int4, and behind the scales, laid out as they are, the offsets f16
    f32, f16, bf16   [N/16][K][16 rows], no scales; K is not padded
value = codes[nibble] * scale (+ offset) (int4), code * scale (int8). An all-zero group has scale 0.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from llmcli.errors import CorruptFile

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

ROWS = 16
"""Rows side by side in one tile."""
GROUP = 32
"""Columns that share a scale."""


@dataclass(frozen=True)
class Format:
    """bits: bits of one code; codes: int8 value of each nibble (int4 formats only); activations: 'int8' where the
    product is taken with activations quantized in groups of 32, else 'f32'; search: its `pack` is search.py's; offset: a group
    also has an offset."""

    name: str
    bits: int
    activations: str
    codes: tuple[int, ...] = ()
    search: bool = False
    offset: bool = False


@dataclass(frozen=True)
class PackedTensor:
    """A weight as a backend gets it. data: u8, 1-D, starting at a multiple of 64 bytes; for 'experts' the E packed
    matrices follow each other. format 'vector': plain float32 of `shape` (norms, biases, tables)."""

    format: str
    shape: tuple[int, ...]
    data: Bytes

    def vector(self) -> Floats:
        """The float32 array of a 'vector' tensor."""
        return self.data.view(np.float32)[: int(np.prod(self.shape))].reshape(self.shape)


class FormatModule(Protocol):
    FORMAT: Format

    def sections(self, rows: int, columns: int) -> tuple[int, ...]: ...
    def size(self, rows: int, columns: int) -> int: ...
    def pack(self, values: Floats) -> Bytes: ...
    def unpack(self, data: Bytes, rows: int, columns: int) -> Floats: ...


NOT_FORMATS = {"format", "search", "layout"}


@cache
def names() -> tuple[str, ...]:
    """The names of all formats: the files of this folder."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(__import__(__package__, fromlist=["x"]).__path__) if m.name not in NOT_FORMATS)
    )


@cache
def get(name: str) -> FormatModule:
    """The module of the format `name`. Raises CorruptFile: names come from files."""
    if not name.isidentifier() or name not in names():
        raise CorruptFile("unknown weight format", repr(name), "Update llm, or import the model again")
    module: ModuleType = importlib.import_module(f"{__package__}.{name}")
    return cast(FormatModule, module)


def integers(name: str) -> bool:
    """Products with this format take activations in int8. Raises CorruptFile."""
    return get(name).FORMAT.activations == "int8"


def aligned(size: int) -> Bytes:
    """size uninitialised bytes that start at a multiple of 64."""
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def padded(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to
