"""int4_uniform: 4.5 bits a weight, evenly spaced codes -8 .. 7. It holds GGUF's Q4_0 bit for bit.

A Q4_0 block is one group: its scale is ours, and its nibbles are our code numbers 0 .. 15 (low nibbles columns 0 .. 15,
high nibbles columns 16 .. 31), so repacking is layout.pack_nibbles alone. `pack` quantizes by Q4_0's rule: the scale
puts the value of the largest magnitude on -8.
"""

from __future__ import annotations

import numpy as np

from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

CODES = tuple(range(-8, 8))
FORMAT = Format("int4_uniform", bits=4, activations="int8", codes=CODES)


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.grouped_sections(4, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    groups = layout.groups(values)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), axis=-1)
    scales = largest / np.float32(-8)
    # Codes are chosen with the scale before it is rounded, in float64: so does the format's reference.
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    numbers = np.clip(np.trunc(groups * inverse.astype(np.float64) + 8.5), 0, 15).astype(np.uint8)
    return layout.pack_nibbles(numbers, layout.half(scales[..., 0]))


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return layout.decode_nibbles(data, rows, columns, CODES)
