"""f16: weights in half precision. Meant for weights that come in it; others are rounded to the nearest."""

from __future__ import annotations

import numpy as np

from llmcli.errors import NumericalError
from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

FORMAT = Format("f16", bits=16, activations="f32")


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.float_sections(16, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    """Raises NumericalError for values that overflow f16."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise NumericalError("a weight is too large for f16", f"up to {np.abs(values).max():.3g}")
    return layout.pack_floats(halves)


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return layout.unpack_floats(data, rows, columns, np.float16).astype(np.float32)
