"""Where each number of a matrix lies in its packed bytes: tiles of 16 rows by 32 columns, scales after all codes.

A packed matrix is one to three sections (codes, then scales, then offsets) and zeros up to a multiple of 64. All sections are in the
order of row tiles, so rows 16 a .. 16 b of a matrix are one stretch of each section: a large matrix can be packed a
few rows at a time (`insert`). Shapes below: N rows and K columns, padded to Np (multiple of 16) and Kp (of 32).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.errors import NumericalError
from llmcli.formats.format import GROUP, ROWS, Bytes, Floats, aligned, padded

Scales = npt.NDArray[np.float16]

SCALE_BYTES = 2


def grouped_sections(bits: int, rows: int, columns: int, scales: int = 1) -> tuple[int, ...]:
    """Bytes of the codes and of the scales of an [N, K] matrix with codes of `bits` bits in groups of 32. scales: numbers that a
    group has beside its codes, 2 where there are offsets too."""
    groups = padded(rows, ROWS) * (padded(columns, GROUP) // GROUP)
    return groups * GROUP * bits // 8, *[groups * SCALE_BYTES] * scales


def float_sections(bits: int, rows: int, columns: int) -> tuple[int, ...]:
    """Bytes of an [N, K] matrix of floats of `bits` bits; columns are not padded."""
    return (padded(rows, ROWS) * columns * bits // 8,)


def total(sections: tuple[int, ...]) -> int:
    """Bytes of a packed matrix with these sections."""
    return padded(sum(sections), 64)


def insert(whole: Bytes, sections: tuple[int, ...], part: Bytes, before: tuple[int, ...], own: tuple[int, ...]) -> None:
    """Copies a packed part of a matrix into place. sections: of the whole matrix; before: of the rows above the part
    (a multiple of 16 of them); own: of the part."""
    start = taken = 0
    for size, skip, length in zip(sections, before, own, strict=True):
        whole[start + skip : start + skip + length] = part[taken : taken + length]
        start, taken = start + size, taken + length


def groups(values: Floats) -> Floats:
    """f32 [N, K] -> f32 [Np, Kp / 32, 32], padded with zeros."""
    rows, columns = values.shape
    if rows % ROWS or columns % GROUP:
        full = np.zeros((padded(rows, ROWS), padded(columns, GROUP)), np.float32)
        full[:rows, :columns] = values
        values = full
    return values.reshape(values.shape[0], -1, GROUP)


def pack_nibbles(codes: Bytes, *scales: Scales) -> Bytes:
    """Code numbers 0..15 [Np, Kp / 32, 32] and scales (and offsets) [Np, Kp / 32] -> packed bytes of an int4 matrix."""
    return _join(_tiled(codes[..., :16] | codes[..., 16:] << np.uint8(4)), *scales)


def unpack_nibbles(data: Bytes, rows: int, columns: int, scales: int = 1) -> tuple[npt.NDArray[Any], ...]:
    """The inverse of pack_nibbles; scales: how many arrays of them there are."""
    packed, *found = _split(4, data, rows, columns, scales)
    both = _rowwise(packed, rows, GROUP // 2)
    return np.concatenate([both & np.uint8(15), both >> np.uint8(4)], axis=-1), *found


def decode_nibbles(data: Bytes, rows: int, columns: int, codes: tuple[int, ...]) -> Floats:
    """The f32 [N, K] matrix that packed int4 bytes stand for."""
    numbers, scales = unpack_nibbles(data, rows, columns)
    return trim(np.array(codes, np.float32)[numbers] * scales.astype(np.float32)[..., None], rows, columns)


def pack_bytes(codes: npt.NDArray[np.int8], scales: Scales) -> Bytes:
    """Codes -127..127 [Np, Kp / 32, 32] and scales [Np, Kp / 32] -> packed bytes of an int8 matrix."""
    return _join(_tiled(codes.view(np.uint8) ^ np.uint8(0x80)), scales)


def unpack_bytes(data: Bytes, rows: int, columns: int) -> tuple[npt.NDArray[np.int8], Scales]:
    """The inverse of pack_bytes."""
    packed, scales = _split(8, data, rows, columns)
    return (_rowwise(packed, rows, GROUP) ^ np.uint8(0x80)).view(np.int8), scales


def pack_floats(values: npt.NDArray[np.generic]) -> Bytes:
    """[N, K] of any item size -> packed bytes [Np / 16][K][16 rows]."""
    rows, columns = values.shape
    out = aligned(total((padded(rows, ROWS) * columns * values.itemsize,)))
    tiles = out[: padded(rows, ROWS) * columns * values.itemsize].view(values.dtype).reshape(-1, columns, ROWS)
    out[tiles.nbytes :] = 0
    whole = rows // ROWS
    tiles[:whole] = values[: whole * ROWS].reshape(whole, ROWS, columns).swapaxes(1, 2)
    if whole < len(tiles):
        tiles[whole] = 0
        tiles[whole, :, : rows - whole * ROWS] = values[whole * ROWS :].T
    return out


def unpack_floats(data: Bytes, rows: int, columns: int, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """The inverse of pack_floats."""
    size = padded(rows, ROWS) * columns * np.dtype(dtype).itemsize
    tiles = data[:size].view(dtype).reshape(-1, columns, ROWS)
    return tiles.swapaxes(1, 2).reshape(-1, columns)[:rows]


def trim(values: Floats, rows: int, columns: int) -> Floats:
    """f32 [Np, Kp / 32, 32] -> f32 [N, K]: the inverse of `groups`."""
    return np.ascontiguousarray(values.reshape(values.shape[0], -1)[:rows, :columns])


def half(scales: Floats) -> Scales:
    """Scales rounded to f16. Raises NumericalError where they are too large for it."""
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise NumericalError("a weight is too large to quantize", f"it needs a scale of {np.abs(scales).max():.3g}", "Use --quant none")
    return rounded


def _tiled(stored: Bytes) -> Bytes:
    """u8 [Np, groups, B] -> u8 [Np / 16, groups, B / 4, 16, 4]."""
    rows, count, size = stored.shape
    return stored.reshape(rows // ROWS, ROWS, count, size // 4, 4).transpose(0, 2, 3, 1, 4)


def _rowwise(packed: Bytes, rows: int, size: int) -> Bytes:
    """The inverse of _tiled for groups of `size` bytes, from flat bytes."""
    tiles = packed.reshape(padded(rows, ROWS) // ROWS, -1, size // 4, ROWS, 4)
    return tiles.transpose(0, 3, 1, 2, 4).reshape(padded(rows, ROWS), -1, size)


def _join(tiles: Bytes, *scales: Scales) -> Bytes:
    sections = tiles.size, *(part.nbytes for part in scales)
    out = aligned(total(sections))
    out[: tiles.size].reshape(tiles.shape)[...] = tiles
    at = tiles.size
    for part in scales:
        rows, count = part.shape
        ordered = out[at : at + part.nbytes].view(np.float16).reshape(rows // ROWS, count, ROWS)
        ordered[...] = part.reshape(rows // ROWS, ROWS, count).swapaxes(1, 2)
        at += part.nbytes
    out[at:] = 0
    return out


def _split(bits: int, data: Bytes, rows: int, columns: int, scales: int = 1) -> tuple[npt.NDArray[Any], ...]:
    """The codes as flat bytes, and the scales, `scales` arrays [Np, Kp / 32]."""
    codes, *sizes = grouped_sections(bits, rows, columns, scales)
    found, at = [], codes
    for size in sizes:
        tiles = data[at : at + size].view(np.float16).reshape(padded(rows, ROWS) // ROWS, -1, ROWS)
        found.append(tiles.swapaxes(1, 2).reshape(padded(rows, ROWS), -1))
        at += size
    return data[:codes], *found
