"""int4: 4.5 bits a weight. Codes are not evenly spaced: close together near zero, where most weights are.

The table was learned by this project (Lloyd's algorithm: search the scales, then move each code to the mean of what it
stands for) on groups of trained weights, normal and Student-t numbers; groups whose largest value is negative get a
negative scale, so one end may reach further than the other. Zero itself is not a code: the nearest is 2.
"""

from __future__ import annotations

from llmcli.formats import layout, search
from llmcli.formats.format import Bytes, Floats, Format

CODES = (-127, -98, -77, -60, -46, -33, -20, -9, 2, 13, 23, 35, 48, 63, 81, 104)
FORMAT = Format("int4", bits=4, activations="int8", codes=CODES, search=True)


def sections(rows: int, columns: int) -> tuple[int, ...]:
    return layout.grouped_sections(4, rows, columns)


def size(rows: int, columns: int) -> int:
    return layout.total(sections(rows, columns))


def pack(values: Floats) -> Bytes:
    return search.pack(values, CODES)


def unpack(data: Bytes, rows: int, columns: int) -> Floats:
    return layout.decode_nibbles(data, rows, columns, CODES)
