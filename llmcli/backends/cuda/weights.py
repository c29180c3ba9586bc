"""Packed matrices as they lie on the GPU: the same numbers as on disk, in the order in which its kernels read them.

A matrix [N, K] is one stretch of bytes. Thirty-two rows lie side by side, so that a warp reads 512 bytes at once, 16 in each lane, and a
lane's bytes are one row's. docs/cuda.md has the drawing.
    int4   codes [N/32][G groups][32 rows][16 bytes]: byte i has column 2 i in its low half, 2 i + 1 in its high half
    int8   codes [N/32][G][2][32 rows][16 bytes]: 16 columns each, signed
    both   then scales f16 [N/32][C][32 rows][8 groups], C = G / 8, rounded up, zeros behind G; then offsets likewise
    f32    [N/32][K/4][32 rows][4], f16 and bf16 [N/32][K/8][32 rows][8], columns padded with zeros
Kernels read groups by eights: codes are followed by SLACK bytes, so that the last eight may reach beyond a tile's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.formats import format as formats
from llmcli.formats.format import GROUP, ROWS, Bytes, PackedTensor, padded

TILE = 32
"""Rows side by side."""
CHUNK = 8
"""Groups whose scales lie side by side, and which kernels read together."""
SLACK = (CHUNK - 1) * TILE * GROUP
ALIGNMENT = 256
FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Place:
    """Where the parts of a matrix on the GPU begin, in bytes. size: of one matrix; those of experts follow each other."""

    rows: int
    columns: int
    scales: int
    offsets: int
    size: int

    @property
    def groups(self) -> int:
        return -(-self.columns // GROUP)

    @property
    def chunks(self) -> int:
        return -(-self.groups // CHUNK)


def place(format: str, rows: int, columns: int) -> Place:
    """The layout of an [N, K] matrix of this format."""
    tall = padded(rows, TILE)
    if format in FLOAT_BYTES:
        size = tall * padded(columns * FLOAT_BYTES[format], 16)
        return Place(rows, columns, size, size, padded(size, ALIGNMENT))
    groups = -(-columns // GROUP)
    found = formats.get(format).FORMAT
    codes = padded(tall * groups * GROUP * found.bits // 8 + SLACK, ALIGNMENT)
    scales = padded(tall * padded(groups, CHUNK) * 2, ALIGNMENT)
    return Place(rows, columns, codes, codes + scales, codes + scales * (2 if found.offset else 1))


def size(tensor: PackedTensor) -> int:
    """Bytes of a packed tensor on the GPU, all its matrices together."""
    if tensor.format == "vector":
        return padded(int(np.prod(tensor.shape)) * 4, ALIGNMENT)
    count = tensor.shape[0] if len(tensor.shape) == 3 else 1
    return count * place(tensor.format, *tensor.shape[-2:]).size


def repack(tensor: PackedTensor, out: Bytes) -> None:
    """The tensor's bytes into out u8 [size(tensor)], a few hundred rows at a time, so that little more memory is needed."""
    if tensor.format == "vector":
        plain = tensor.vector().reshape(-1).view(np.uint8)
        out[: plain.size] = plain
        return
    rows, columns = tensor.shape[-2:]
    packed, own = formats.get(tensor.format).size(rows, columns), place(tensor.format, rows, columns)
    for number in range(len(out) // own.size):
        _matrix(tensor.format, tensor.data[number * packed :][:packed], own, out[number * own.size :][: own.size])


def _matrix(format: str, data: Bytes, own: Place, out: Bytes) -> None:
    sections = formats.get(format).sections(own.rows, own.columns)
    if format in FLOAT_BYTES:
        _floats(data[: sections[0]], FLOAT_BYTES[format], own.columns, out)
        return
    bits = formats.get(format).FORMAT.bits
    count = padded(own.rows, TILE) * own.groups * GROUP * bits // 8
    (_nibbles if bits == 4 else _bytes)(data[: sections[0]], own.groups, out[:count])
    out[count : own.scales] = 0
    for start, at in zip(np.cumsum(sections[:-1]), (own.scales, own.offsets), strict=False):
        length = padded(own.rows, TILE) * own.chunks * CHUNK * 2
        _scales(data[start : start + sections[1]], own.groups, out[at : at + length])


def _pieces(tiles: npt.NDArray[Any], row_bytes: int) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Tiles of 16 rows by pairs, in pieces of some MiB: which tiles of 32, and an array [tiles, 2, ...]. The last tile may miss its
    lower half: zeros."""
    step = max(1, (1 << 22) // (row_bytes * TILE))
    for start in range(0, (len(tiles) + 1) // 2, step):
        part = tiles[2 * start : 2 * (start + step)]
        if len(part) % 2:
            part = np.concatenate([part, np.zeros_like(part[:1])])
        yield slice(start, start + len(part) // 2), part.reshape(-1, 2, *part.shape[1:])


def _nibbles(data: Bytes, groups: int, out: Bytes) -> None:
    words = data.view(np.uint32).reshape(-1, groups, 4, ROWS)
    to = out.view(np.uint16).reshape(-1, groups, 2, ROWS, 8)
    for tiles, piece in _pieces(words, groups * 16):
        by_row = piece.transpose(0, 2, 1, 4, 3)  # [tile, group, half, row, four columns]
        to[tiles, ..., :4] = _four(by_row)
        to[tiles, ..., 4:] = _four(by_row >> np.uint32(4))


def _four(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The low halves of four bytes, side by side in 16 bits."""
    low = words & np.uint32(0x0F0F0F0F)
    pairs = (low | low >> np.uint32(4)) & np.uint32(0x00FF00FF)
    return (pairs | pairs >> np.uint32(8)) & np.uint32(0xFFFF)


def _bytes(data: Bytes, groups: int, out: Bytes) -> None:
    words = data.view(np.uint32).reshape(-1, groups, 2, 4, ROWS)
    to = out.view(np.uint32).reshape(-1, groups, 2, 2, ROWS, 4)
    for tiles, piece in _pieces(words, groups * 32):
        to[tiles] = piece.transpose(0, 2, 3, 1, 5, 4) ^ np.uint32(0x80808080)  # stored as code + 128


def _scales(data: Bytes, groups: int, out: Bytes) -> None:
    halves = data.view(np.uint16).reshape(-1, groups, ROWS)
    to = out.view(np.uint16).reshape(-1, padded(groups, CHUNK) // CHUNK, 2, ROWS, CHUNK)
    for tiles, piece in _pieces(halves, groups * 2):
        whole = np.pad(piece, ((0, 0), (0, 0), (0, -groups % CHUNK), (0, 0)))
        to[tiles] = whole.reshape(len(piece), 2, -1, CHUNK, ROWS).transpose(0, 2, 1, 4, 3)


def _floats(data: Bytes, each: int, columns: int, out: Bytes) -> None:
    wide = 16 // each
    values = data.view(f"u{each}").reshape(-1, columns, ROWS)
    to = (
        out[: padded(len(values), 2) * ROWS * padded(columns, wide) * each]
        .view(f"u{each}")
        .reshape(-1, padded(columns, wide) // wide, 2, ROWS, wide)
    )
    for tiles, piece in _pieces(values, columns * each):
        whole = np.pad(piece, ((0, 0), (0, 0), (0, -columns % wide), (0, 0)))
        to[tiles] = whole.reshape(len(piece), 2, -1, wide, ROWS).transpose(0, 2, 1, 4, 3)
