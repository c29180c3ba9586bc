"""Bytes from outside become text, or a clear refusal: strict UTF-8, no NUL, of bounded length."""

from __future__ import annotations

import codecs
from typing import Protocol

from llmcli.errors import InputError

LARGEST = 16 * 2**20
"""Bytes that are read at most: some four million tokens, more than any context holds."""


class Reader(Protocol):
    """An open binary file."""

    def read(self, size: int, /) -> bytes: ...


def read_text(file: Reader, name: str) -> str:
    """All of the file as text, a byte order mark dropped. name: what messages call it. Raises InputError."""
    parts, size = [], 0
    while size <= LARGEST and (part := file.read(min(2**20, LARGEST + 1 - size))):
        parts.append(part)
        size += len(part)
    if size > LARGEST:
        raise InputError(f"{name} is too long", f"more than {LARGEST // 2**20} MiB of text", "Give a part of it")
    return decode(b"".join(parts), name)


def decode(data: bytes, name: str) -> str:
    """The text of data. Raises InputError with the offset of the first byte that is wrong."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "UTF-16LE"), (codecs.BOM_UTF16_BE, "UTF-16BE")):
        if data.startswith(mark):
            raise InputError(f"{name} is not UTF-8", "it begins as UTF-16 does", f"Convert it: iconv -f {encoding} -t UTF-8")
    offset = data.find(b"\0")
    if offset >= 0:
        # Plain English in UTF-16 has every second byte zero.
        half = b"\0" in data[:4] and data[:256].count(0) * 3 > min(256, len(data))
        hint = "Convert it: iconv -f UTF-16 -t UTF-8" if half else "Remove it: tr -d '\\000'"
        raise InputError(f"{name} has a NUL byte", f"at byte {offset:,}" + (", it looks like UTF-16" if half else ""), hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The mark is not part of what the decoder counts.
        at = error.start + (3 if data.startswith(codecs.BOM_UTF8) else 0)
        why = f"byte 0x{data[at]:02x} at offset {at:,}: {error.reason}"
        raise InputError(f"{name} is not UTF-8", why, "Convert it with iconv") from error
