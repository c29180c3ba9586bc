"""f32: weights as they are, 32 bits each."""

from __future__ import annotations

import numpy as np

from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

FORMAT = Format("f32", bits=32, activations="f32")


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.float_sections(32, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    return layout.pack_floats(values)


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return layout.unpack_floats(data, rows, columns, np.float32).astype(np.float32)
