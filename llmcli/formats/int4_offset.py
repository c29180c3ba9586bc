"""int4_offset: 5 bits a weight: codes 0 .. 15, a scale and an offset for each 32 weights, value = scale * code + offset.

It holds GGUF's Q4_1 bit for bit, and the sub-blocks of Q4_K but for the rounding of their scales to f16. Low nibbles are
columns 0 .. 15 of the group, high nibbles columns 16 .. 31. `pack` quantizes by Q4_1's rule: the smallest value is code 0, the
largest code 15.
"""

from __future__ import annotations

import numpy as np

from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

FORMAT = Format("int4_offset", bits=4, activations="int8", codes=tuple(range(16)), offset=True)


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.grouped_sections(4, rows, columns, scales=2)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    groups = layout.groups(values)
    low = groups.min(-1)
    scales = (groups.max(-1) - low) / np.float32(15)
    # Codes are chosen with the scale before it is rounded, in float64: so does the format's reference.
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    numbers = np.clip(np.trunc((groups - low[..., None]) * inverse[..., None].astype(np.float64) + 0.5), 0, 15).astype(np.uint8)
    return layout.pack_nibbles(numbers, layout.half(scales), layout.half(low))


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    numbers, scales, offsets = layout.unpack_nibbles(data, rows, columns, scales=2)
    values = numbers * scales.astype(np.float32)[..., None] + offsets.astype(np.float32)[..., None]
    return layout.trim(values, rows, columns)
