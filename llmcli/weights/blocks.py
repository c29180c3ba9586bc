"""GGUF's blocks in our formats: codes and scales are moved as they are, so that nothing is rounded twice.

Each function takes rows of blocks, u8 [N, bytes of a row], and returns the matrix packed in our format, or None where that
format cannot hold these. Layouts are those of the GGUF specification and its reference implementation (ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.formats import layout
from llmcli.formats.format import ROWS, Bytes, padded


def _q4_0(raw: Bytes) -> Bytes | None:
    """f16 scale, 16 bytes of nibbles: the low ones are columns 0 .. 15, as in our int4 formats."""
    scales, nibbles = _fields(raw, 1, 16)
    return _pack_nibbles(_low_and_high(nibbles), scales)


def _q4_1(raw: Bytes) -> Bytes | None:
    """f16 scale, f16 offset, 16 bytes of nibbles."""
    scales, offsets, nibbles = _fields(raw, 2, 16)
    return _pack_nibbles(_low_and_high(nibbles), scales, offsets)


def _q8_0(raw: Bytes) -> Bytes | None:
    """f16 scale, 32 signed bytes. Ours has no code -128, which other programs' rules never give."""
    scales, codes = _fields(raw, 1, 32)
    signed = codes.view(np.int8)
    whole = np.isfinite(scales).all() and signed.min(initial=0) > -128
    return layout.pack_bytes(_padded(signed), _padded(scales)) if whole else None


def _q4_k(raw: Bytes) -> Bytes | None:
    """256 values in eight groups: f16 d and dmin, 12 bytes with 6 bits of scale s and of offset m for each group, 128 bytes of
    nibbles, value = d * s * nibble - dmin * m. Our scale d * s and offset -dmin * m are rounded to f16: a relative 0.0005 at most."""
    d, dmin, rest = _fields(raw, 2, 12 + 128)
    low, high, tops = rest[..., 0:4], rest[..., 4:8], rest[..., 8:12]
    s = np.concatenate([low & 63, tops & 15 | low >> 6 << 4], axis=-1)
    m = np.concatenate([high & 63, tops >> 4 | high >> 6 << 4], axis=-1)
    with np.errstate(all="ignore"):  # what does not fit is found below
        scales = (d.astype(np.float32)[..., None] * s).astype(np.float16)
        offsets = (dmin.astype(np.float32)[..., None] * m * np.float32(-1)).astype(np.float16)
    nibbles = rest[..., 12:].reshape(*rest.shape[:2], 4, 32)  # 32 bytes: the low halves are one group, the high halves the next
    numbers = np.stack([nibbles & 15, nibbles >> 4], axis=-2)
    rows = len(raw)
    return _pack_nibbles(numbers.reshape(rows, -1, 32), scales.reshape(rows, -1), offsets.reshape(rows, -1))


@dataclass(frozen=True)
class Move:
    """format: the format of ours that holds a type's blocks; wanted: the format whose place it takes because it is as small, '' where
    only the blocks themselves are wanted; move: rows of blocks as a matrix packed in `format`."""

    format: str
    wanted: str
    move: Callable[[Bytes], Bytes | None]


MOVES = {
    "Q4_0": Move("int4_uniform", "int4", _q4_0),
    "Q4_1": Move("int4_offset", "", _q4_1),
    "Q4_K": Move("int4_offset", "", _q4_k),
    "IQ4_NL": Move("iq4_nl", "int4", _q4_0),
    "Q8_0": Move("int8", "int8", _q8_0),
}
"""By GGUF type."""


def _fields(raw: Bytes, halves: int, rest: int) -> list[npt.NDArray[Any]]:
    """Blocks of some f16 numbers and `rest` bytes: `halves` arrays f16 [N, blocks], then u8 [N, blocks, rest]."""
    blocks = raw.reshape(len(raw), -1, 2 * halves + rest)
    numbers = np.ascontiguousarray(blocks[..., : 2 * halves]).view(np.float16)
    return [*(numbers[..., i] for i in range(halves)), blocks[..., 2 * halves :]]


def _low_and_high(nibbles: Bytes) -> Bytes:
    """[..., 16] bytes -> [..., 32] code numbers."""
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)


def _pack_nibbles(numbers: Bytes, *scales: layout.Scales) -> Bytes | None:
    if not all(np.isfinite(part).all() for part in scales):
        return None
    return layout.pack_nibbles(_padded(numbers), *map(_padded, scales))


def _padded(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """With rows of zeros up to a multiple of 16."""
    rows = len(part)
    if rows % ROWS == 0:
        return np.ascontiguousarray(part)
    full = np.zeros((padded(rows, ROWS), *part.shape[1:]), part.dtype)
    full[:rows] = part
    return full
