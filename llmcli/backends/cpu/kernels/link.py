"""A kernel's object file becomes an image (images.py): its sections one behind the other, and every distance between them filled in.

That is all there is to link, because code is compiled so that it may lie anywhere. Behind the sections stands a jump for each function
that is called outside, through its address in the image's head. The object is ELF of 64 bits, little-endian; relocations are those of
the System V ABI for x86-64 (4.4) and of ELF for the Arm 64-bit Architecture (5.7); others are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from llmcli.backends.cpu.images import FUNCTIONS, HEAD, PAGE

X86_64, AARCH64 = 62, 183
PROGBITS, SYMTAB, RELA = 1, 2, 4
WRITE, ALLOC = 1, 2
ALIGNMENT = 64

_X86_DISTANCE = (2, 4)
"""R_X86_64_PC32 and PLT32: a distance of 32 bits."""
_ARM_DISTANCE, _ARM_CALLS, _ARM_PAGE = 261, (282, 283), 275
"""R_AARCH64_PREL32; JUMP26 and CALL26; ADR_PREL_PG_HI21, the distance of two pages."""
_ARM_IN_PAGE = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""R_AARCH64_ADD_ABS_LO12_NC and LDST8 to LDST128_ABS_LO12_NC: a place in its page, in units of 1 << this many bytes."""


class Section(NamedTuple):
    """A section header, as the file has it."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


@dataclass(frozen=True)
class Symbol:
    """section: its number, 0 for what is defined elsewhere."""

    name: str
    section: int
    value: int


def image(code: bytes, symbol: str) -> bytes:
    """The image of an object whose function is called `symbol`. Raises RuntimeError for what cannot be linked like this, and for a
    function that calls anything but FUNCTIONS."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise RuntimeError(f"{symbol} is not a 64-bit ELF object")
    (machine,), (table,) = struct.unpack_from("<H", code, 18), struct.unpack_from("<Q", code, 40)
    entry, count, names = struct.unpack_from("<HHH", code, 58)
    sections = [Section(*struct.unpack_from("<IIQQQQIIQQ", code, table + i * entry)) for i in range(count)]
    symbols = [found for section in sections if section.kind == SYMTAB for found in _symbols(code, section, sections[section.link])]
    foreign = {found.name for found in symbols if found.name and not found.section}
    if foreign - set(FUNCTIONS):
        raise RuntimeError(f"{symbol} calls {', '.join(sorted(foreign - set(FUNCTIONS)))}")
    out, starts = bytearray(HEAD), {}
    for number, section in enumerate(sections):
        # What unwinds the stack after an exception is left out: kernels raise none.
        if section.flags & ALLOC and section.size and _name(code, sections[names], section.name) != ".eh_frame":
            if section.kind != PROGBITS or section.flags & WRITE or section.align > ALIGNMENT:
                raise RuntimeError(f"{symbol} has memory of its own, or may raise an exception")
            out += bytes(-len(out) % ALIGNMENT)
            starts[number] = len(out)
            out += code[section.offset : section.offset + section.size]
    jumps = {name: _jump(out, machine, FUNCTIONS.index(name)) for name in sorted(foreign)}
    for section in sections:
        if section.kind == RELA and section.info in starts:
            for at in range(section.offset, section.offset + section.size, 24):
                place, kind, number, addend = struct.unpack_from("<QIIq", code, at)
                goal = symbols[number]
                start = starts[goal.section] + goal.value if goal.section in starts else jumps[goal.name]
                _fill(out, machine, kind, starts[section.info] + place, start + addend)
    (own,) = [found for found in symbols if found.name == symbol]
    struct.pack_into("<Q", out, 0, starts[own.section] + own.value)
    return bytes(out)


def _name(code: bytes, strings: Section, at: int) -> str:
    start = strings.offset + at
    return code[start : code.index(b"\0", start)].decode()


def _symbols(code: bytes, section: Section, strings: Section) -> list[Symbol]:
    found = [struct.unpack_from("<IBBHQ", code, at) for at in range(section.offset, section.offset + section.size, 24)]
    return [Symbol(_name(code, strings, name), place, value) for name, _, _, place, value in found]


def _jump(out: bytearray, machine: int, function: int) -> int:
    """Appends a jump to one of FUNCTIONS and says where it is."""
    out += bytes(-len(out) % 16)
    start, address = len(out), 8 + 8 * function
    if machine == X86_64:
        out += b"\xff\x25" + struct.pack("<i", address - (start + 6))  # jmp *address(%rip)
    else:
        out += struct.pack("<II", 0x58000010 | _bits((address - start) // 4, 19) << 5, 0xD61F0200)  # ldr x16, address; br x16
    return start


def _fill(out: bytearray, machine: int, kind: int, place: int, goal: int) -> None:
    """One relocation: the code at `place` means `goal`, both counted from the image's start."""
    distance = goal - place
    if (machine == X86_64 and kind in _X86_DISTANCE) or (machine == AARCH64 and kind == _ARM_DISTANCE):
        struct.pack_into("<i", out, place, distance)
        return
    if machine == AARCH64 and kind in _ARM_CALLS:
        field = _bits(distance // 4, 26)
    elif machine == AARCH64 and kind == _ARM_PAGE:
        pages = _bits(goal // PAGE - place // PAGE, 21)
        field = (pages & 3) << 29 | pages >> 2 << 5
    elif machine == AARCH64 and kind in _ARM_IN_PAGE:
        field = (goal % PAGE >> _ARM_IN_PAGE[kind]) << 10
    else:
        raise RuntimeError(f"relocation {kind} of machine {machine} is not known")
    (instruction,) = struct.unpack_from("<I", out, place)
    struct.pack_into("<I", out, place, instruction | field)


def _bits(value: int, width: int) -> int:
    return value & (1 << width) - 1
