"""A model's file that is open for reading: read in pieces (pread), not mapped, so that a cut-off file is an error and no signal."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from llmcli.errors import AccessDenied, CorruptFile, NotFound
from llmcli.formats.format import Bytes


class Opened(ABC):
    """A file whose header has been checked. Close it, or use it in a `with`.

    Raises NotFound, AccessDenied, or what the check raises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular(path)
        try:
            self.size = os.fstat(self._descriptor).st_size
            self._check()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _check(self) -> None:
        """Reads the header and checks it against the size. Raises CorruptFile."""

    def read(self, start: int, size: int) -> Bytes:
        """The bytes start .. start + size of the file, u8 [size]."""
        out = np.empty(size, np.uint8)
        self.read_into(out.data, start)
        return out

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills the buffer with the file's bytes from `start` on. Callable from several threads at once. Raises CorruptFile
        where there are too few."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], start + done)
            except OSError as error:
                raise CorruptFile(f"{self.path} cannot be read", error.strerror or str(error)) from error
            if count == 0:
                raise CorruptFile(str(self.path), f"it ends after {start + done:,} bytes: it was cut off while it was read")
            done += count

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file (links are followed; pipes and devices are refused, without waiting)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}") from error
    except PermissionError as error:
        raise AccessDenied(f"{path} cannot be read", "permission denied") from error
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be opened", getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptFile(str(path), "it is not a regular file")
    return descriptor
