"""Codes of packed weights in registers: words of four signed bytes, as dp4a and mma take them (weights.py has the layout)."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import device, load4, load8, permute, shared16
from llmcli.formats import format as formats

IDENTITY = np.int32(0x32103210)
"""permute: bytes 0 .. 3, twice."""
NUMBERS, UPPER = np.int32(0x77777777), np.int32(0x44444444)


def table(format):
    """The 16 codes of an int4 format as four words, the arguments t0 .. t3 of its kernels; zeros for other formats."""
    codes = formats.get(format).FORMAT.codes or (0,) * 16
    return tuple(int(word) for word in np.array(codes, np.int8).view(np.int32))


@device
def eight(packed, t0, t1, t2, t3):
    """Eight nibbles -> their codes as two words. Both halves of the table are looked up by a nibble's three low bits, and its
    upper bit takes one of them: 11 instructions."""
    number = packed & NUMBERS
    upper = packed >> 1 & UPPER | IDENTITY
    first = permute(permute(t0, t1, number & 0x7777), permute(t2, t3, number & 0x7777), upper & 0x7777)
    number, upper = number >> 16 & 0x7777, upper >> 16 & 0x7777
    return first, permute(permute(t0, t1, number), permute(t2, t3, number), upper)


@device
def int4_row(words, at, t0, t1, t2, t3):
    """A row's group of 32 codes in shared memory, where a tile's group begins at a lane's `at`: as eight words."""
    p0, p1, p2, p3 = shared16(words, at)
    c0, c1 = eight(p0, t0, t1, t2, t3)
    c2, c3 = eight(p1, t0, t1, t2, t3)
    c4, c5 = eight(p2, t0, t1, t2, t3)
    c6, c7 = eight(p3, t0, t1, t2, t3)
    return c0, c1, c2, c3, c4, c5, c6, c7


@device
def int8_row(words, at, t0, t1, t2, t3):
    c0, c1, c2, c3 = shared16(words, at)
    c4, c5, c6, c7 = shared16(words, at + 128)
    return c0, c1, c2, c3, c4, c5, c6, c7


@device
def int4_packed(weights, at, row, quarter):
    """Columns 8 * quarter .. + 7 of a group of one row, still packed: (nibbles, nothing)."""
    return load4(weights, at + row * 16 + quarter * 4), np.int32(0)


@device
def int8_packed(weights, at, row, quarter):
    return load8(weights, at + quarter // 2 * 512 + row * 16 + quarter % 2 * 8)


@device
def int4_codes(first, second, t0, t1, t2, t3):
    return eight(first, t0, t1, t2, t3)


@device
def int8_codes(first, second, t0, t1, t2, t3):
    return first, second


GROUP_BYTES = {"int4": 512, "int8": 1024}
"""Of 32 rows."""
ROW = {"int4": int4_row, "int8": int8_row}
PACKED = {"int4": int4_packed, "int8": int8_packed}
CODES = {"int4": int4_codes, "int8": int8_codes}


def kind(format):
    """Which kernels a format has: 'int4' of any table, 'int4_offset', 'int8', or a float format's name."""
    found = formats.get(format).FORMAT
    if found.activations != "int8":
        return format
    return "int4_offset" if found.offset else f"int{found.bits}"
