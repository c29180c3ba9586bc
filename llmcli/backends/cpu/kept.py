"""Small files that only we write: whole or not at all, in a folder where nobody else could, with a checksum that is tied to what they are.

They hold code that is run, and what it is made for. What is damaged is deleted, and made again by whoever needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

MAGIC = b"llmkept1"
CHECK_BYTES = 32


class Damaged(Exception):
    """A file that is not what was written there. It is gone."""


def foreign(folder: os.stat_result) -> bool:
    """Whether others could write there."""
    return not stat.S_ISDIR(folder.st_mode) or folder.st_uid not in (0, os.geteuid()) or bool(folder.st_mode & 0o022)


def read(path: Path, what: str) -> bytes | None:
    """The contents of a file that was written as `what`; None where it cannot be read. Raises Damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(MAGIC) + CHECK_BYTES
    contents = data[head:]
    if data[:head] == MAGIC + _check(what, contents):
        return contents
    with contextlib.suppress(OSError):
        path.unlink()
    raise Damaged


def write(path: Path, what: str, contents: bytes) -> None:
    """Keeps a file. Raises OSError, and nothing is left then."""
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        part.write_bytes(MAGIC + _check(what, contents) + contents)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _check(what: str, contents: bytes) -> bytes:
    """One thing's file under another's name is damage too."""
    return hashlib.blake2b(what.encode() + contents, digest_size=CHECK_BYTES).digest()
