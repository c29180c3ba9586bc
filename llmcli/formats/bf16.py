"""bf16: the upper half of a float32. Meant for weights that come in it; others are rounded to the nearest, ties to even."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

FORMAT = Format("bf16", bits=16, activations="f32")


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.float_sections(16, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return layout.pack_floats(((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16))


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return widen(layout.unpack_floats(data, rows, columns, np.uint16))


def widen(bits: npt.NDArray[np.generic]) -> Floats:
    """The bits of bf16 numbers (u16, any shape) as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
