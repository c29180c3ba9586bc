"""Compiled kernels as files: in a folder of the user's own, checked when read, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmcli.backends.backend import Notify

CHECK_BYTES = 32


def folder(path: Sequence[Path], warn: Notify) -> Path | None:
    """The last of these folders, each in the one before and made if need be; None where what lies in it could be somebody else's code."""
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


def foreign(found: os.stat_result) -> bool:
    """Whether others could write in that folder."""
    return not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & 0o022)


def read(path: Path, magic: bytes, name: str, warn: Notify) -> bytes | None:
    """The code in a file, or None. A damaged file is deleted; one that was written under another `name` is damaged too."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(magic) + CHECK_BYTES
    code = data[head:]
    if data[:head] == magic + _check(name, code):
        return code
    warn(f"compiled kernel {path.name} is damaged; compiling it again")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def write(path: Path, magic: bytes, name: str, code: bytes, warn: Notify) -> bool:
    """Keeps code in a file. Says whether it could."""
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        part.write_bytes(magic + _check(name, code) + code)
        part.replace(path)
        return True
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        warn(f"compiled kernels cannot be kept, so they are compiled again each time: {error}")
        return False


def _check(name: str, code: bytes) -> bytes:
    """A checksum that ties code to its name."""
    return hashlib.blake2b(name.encode() + code, digest_size=CHECK_BYTES).digest()


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
