"""A packed file that takes several processes to make: each goes on where the one before was killed.

.NAME.pull has the tensors at their places, .NAME.journal a line for each that is written: its name and its checksums,
which are compared with the bytes before they are relied on. When all are there, the header is written and .NAME.pull gets
its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmcli.weights.atomic import sync_folder
from llmcli.weights.convert import Reader
from llmcli.weights.packed import FILE, PIECE, make_header
from llmcli.weights.writer import Contents


class Packing:
    """The making of the packed file `path`. Only one process at a time may have it (atomic.turn). OSError passes through."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self._part, self._journal = (path.with_name(f".{path.name}.{kind}") for kind in ("pull", "journal"))
        self._done = self._resumed()

    @property
    def missing(self) -> int:
        """Bytes that are still to be written."""
        return self.contents.size - sum(self.contents.entries[name].stored for name in self._done)

    @property
    def weights_size(self) -> int:
        """Bytes that the weights will take in memory."""
        return sum(self.contents.entries[name].stored for name in self.contents.weights)

    def left(self) -> list[str]:
        """The weights that are not written yet, in the file's order."""
        return [name for name in self.contents.weights if name not in self._done]

    def write(self, name: str, reader: Reader, advance: Callable[[int], None]) -> None:
        """Packs a weight into its place. Raises NumericalError."""
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            entry = self.contents.write(descriptor, name, reader, advance)
        finally:
            os.close(descriptor)
        with self._journal.open("a", encoding="utf-8") as journal:
            if not self._done:
                journal.truncate(0)
                journal.write(f"{self._fingerprint()}\n")
            journal.write(f"{json.dumps([name, entry.checksum, entry.sha256])}\n")
        self._done.add(name)

    def sync(self) -> None:
        """Puts what is written on the disk."""
        if self._done:
            for path in (self._part, self._journal):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def finish(self) -> None:
        """Puts the file at its place: all weights are written."""
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            for name in self.contents.entries:
                if name.startswith(FILE):
                    self.contents.write_file(descriptor, name)
            self.contents.finish(descriptor)
            os.ftruncate(descriptor, self.contents.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(self._part, self.path)
        sync_folder(self.path.parent)
        self._journal.unlink(missing_ok=True)

    def _fingerprint(self) -> str:
        """What must be the same for written weights to be of use: every name, format, shape and text but the date."""
        return hashlib.sha256(make_header(self.contents.same, self.contents.blank)).hexdigest()

    def _resumed(self) -> set[str]:
        """The weights that an earlier process wrote; what it left that is of no use is removed."""
        done: set[str] = set()
        with suppress(OSError, ValueError, TypeError, UnicodeDecodeError):
            lines = self._journal.read_text(encoding="utf-8").split("\n")
            if lines[0] == self._fingerprint():
                with self._part.open("rb") as part:
                    for line in lines[1:-1]:
                        name, checksum, sha256 = json.loads(line)
                        if name in self.contents.weights and self._sha256(part.fileno(), name) == sha256:
                            self.contents.written(name, checksum, sha256)
                            done.add(name)
        kept = [self._fingerprint()] if done else []
        kept += [json.dumps([n, self.contents.entries[n].checksum, self.contents.entries[n].sha256]) for n in sorted(done)]
        if kept:
            temporary = self._journal.with_suffix(".tmp")
            temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")
            os.replace(temporary, self._journal)
        else:
            for path in (self._part, self._journal):
                path.unlink(missing_ok=True)
        return done

    def _sha256(self, descriptor: int, name: str) -> str:
        digest, start, size = hashlib.sha256(), self.contents.starts[name], self.contents.entries[name].stored
        for at in range(0, size, PIECE):
            digest.update(os.pread(descriptor, min(PIECE, size - at), start + at))
        return digest.hexdigest()
