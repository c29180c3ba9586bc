"""Experts stored as one tensor, with the rows of gates and ups alternating: their matrices, gates first.

Two kinds: floats [E, K, N] (transposed), and MXFP4: blocks u8 [E, N, K / 32, 16] of two 4-bit floats a byte, the lower
one first, with one power of two a block, u8 [E, N, K / 32] with a bias of 127 (OCP Microscaling Formats, 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmcli.formats.format import Bytes, Floats

Decode = Callable[[int, int], Floats]
"""Rows start .. stop as they are stored, f32."""

MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes of a 4-bit float (2 bits of exponent, 1 of mantissa) mean."""


class Rows:
    """A matrix of stored rows; with `alternating` the even ones, then the odd ones (convert.Matrix)."""

    def __init__(self, rows: int, columns: int, decode: Decode, alternating: bool) -> None:
        self.rows, self.columns = rows, columns
        self._decode, self._alternating = decode, alternating

    def read(self, start: int, stop: int) -> Floats:
        if not self._alternating:
            return self._decode(start, stop)
        half, parts = self.rows // 2, []
        if start < half:
            first, last = start, min(stop, half)
            parts.append(self._decode(2 * first, 2 * last)[::2])
        if stop > half:
            first, last = max(start, half) - half, stop - half
            parts.append(self._decode(2 * first, 2 * last)[1::2])
        return np.concatenate(parts)

    def repack(self, start: int, stop: int, format: str) -> Bytes | None:
        return None


def mxfp4(blocks: Bytes, scales: Bytes, columns: int) -> Floats:
    """Rows of K columns: blocks u8 [n * K / 2], scales u8 [n * K / 32] -> f32 [n, K]. A scale of 255 means NaN."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1, 32)
    powers = np.where(scales == 255, np.float32(np.nan), np.ldexp(np.float32(1), scales.astype(np.int32) - 127))
    values: Floats = MXFP4_VALUES[codes] * powers[:, None].astype(np.float32)
    return values.reshape(-1, columns)
