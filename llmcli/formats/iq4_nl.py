"""iq4_nl: 4.5 bits a weight, the code table of GGUF's IQ4_NL, whose blocks it holds bit for bit.

A block is one group, as with Q4_0 (see int4_uniform.py). `pack` searches the scales like int4's, whose table fits the
weights of models better: this format is for weights that come in it.
"""

from __future__ import annotations

from llmcli.formats import layout, search
from llmcli.formats.format import Bytes, Floats, Format

CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FORMAT = Format("iq4_nl", bits=4, activations="int8", codes=CODES, search=True)


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.grouped_sections(4, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    return search.pack(values, CODES)


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return layout.decode_nibbles(data, rows, columns, CODES)
