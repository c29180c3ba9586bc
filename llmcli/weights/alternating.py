"""Tensors that are no matrices of ours until all of it is there: transposed experts, rows of gates and ups that alternate,
and MXFP4, 4-bit floats in blocks of 32 with a power of two each (OCP Microscaling Formats, 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmcli.formats.format import Bytes, Floats

MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes of a 4-bit float (2 bits of exponent, 1 of mantissa) mean."""


class Whole:
    """A matrix (convert.Matrix) that `load` gives as f32 [rows, columns]: before its first row is read, and dropped after
    the last. alternating: its rows 0, 2, ... come before its rows 1, 3, ..."""

    def __init__(self, rows: int, columns: int, load: Callable[[], Floats], alternating: bool = False) -> None:
        self.rows, self.columns = rows, columns
        self._load, self._alternating = load, alternating
        self._values: Floats | None = None

    def read(self, start: int, stop: int) -> Floats:
        if self._values is None:
            self._values = self._load()
        place = np.arange(start, stop)
        if self._alternating:
            half = self.rows // 2
            place = 2 * (place % half) + place // half
        values: Floats = np.ascontiguousarray(self._values[place])
        if stop == self.rows:
            self._values = None
        return values

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        return None


def mxfp4(blocks: Bytes, scales: Bytes, columns: int) -> Floats:
    """Rows of K columns: blocks u8 [n * K / 2], two codes a byte, the lower one first, and scales u8 [n * K / 32], powers of
    two with a bias of 127 -> f32 [n, K]. A scale of 255 means NaN."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1, 32)
    with np.errstate(over="ignore"):  # infinities are reported with their place and not as warnings
        powers = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
        powers[scales == 255] = np.nan
        values: Floats = MXFP4_VALUES[codes] * powers[:, None]
    return values.reshape(-1, columns)
