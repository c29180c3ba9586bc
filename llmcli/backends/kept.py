"""Small files that only we write: whole or not at all, in a folder where nobody else could, with a checksum that is tied to what they are.

They hold code that is run, and what it is made for. What is damaged is deleted, and made again by whoever needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MAGIC = b"llmkept1"
CHECK_BYTES = 32
Warn = Callable[[str], None]


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


# --- Compiled kernels


def folder(path: Sequence[Path], warn: Warn) -> Path | None:
    """The last of these folders, made if need be, or None where what lies in one of them could be somebody else's code."""
    for place in path:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = place.stat()
        except OSError as error:
            warn(f"no folder for compiled kernels, so they are compiled again each time: {error}")
            return None
        if foreign(found):
            warn(f"compiled kernels in {place} are not used, because others could write there (chmod go-w, or set LLMCLI_KERNELS)")
            return None
    return path[-1]


def kernel(path: Path, what: str, warn: Warn) -> bytes | None:
    """The kept code, or None."""
    try:
        return read(path, what)
    except Damaged:
        warn(f"compiled kernel {path.name} is damaged; compiling it again")
        return None


def keep_kernel(path: Path, what: str, code: bytes, warn: Warn) -> bool:
    """Keeps code. Says whether it could."""
    try:
        write(path, what, code)
        return True
    except OSError as error:
        warn(f"compiled kernels cannot be kept, so they are compiled again each time: {error}")
        return False


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """One process compiles into a folder at a time. Where locks do not work, several do the same work: no harm."""
    file = None
    if folder:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            file = open(folder / ".lock", "wb")
            fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file:
            file.close()


def warn(text: str) -> None:
    """What is said where nobody listens."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
