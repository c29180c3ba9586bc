"""One file of a repository onto the disk, whole and right: resumed where an earlier attempt stopped, its hash compared.

NAME.part has the file's bytes at their places and, behind them, how far each segment has come (u64 each): large files
come in several segments at once. A part that is exactly as long as the file is complete. Only what has the promised
hash gets the name NAME; what has not is removed and fetched once more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmcli import places
from llmcli.errors import DiskError, HashMismatch, LlmError, NotFound
from llmcli.weights import hub as hubs
from llmcli.weights.atomic import sync_folder
from llmcli.weights.hub import Hub, Listing, Patience, RemoteFile, Transient

CONNECTIONS = 4
SMALLEST_SEGMENT = 8 << 20
PIECE = 256 << 10
"""Bytes received and written at once: what a kill can lose of each segment."""
PROGRESS = 1 << 20
"""Bytes that make the attempts new."""

Received = Callable[[int], None]
"""Called with the bytes that have come in since the last call, from one thread only."""


def fetch(hub: Hub, listing: Listing, file: RemoteFile, folder: Path, received: Received) -> Path:
    """The file `file` in `folder`, complete and with the promised hash: what is there already is used.

    Raises HashMismatch (after a second attempt), NetworkError, NotFound, AccessDenied, DiskError."""
    path = folder / file.name
    try:
        if path.exists():
            if _hash(path, file) == file.hash:
                return path
            path.unlink()
        part = folder / f"{file.name}.part"
        for _ in range(2):
            _fill(hub, listing, file, part, received)
            if _hash(part, file) == file.hash:
                os.rename(part, path)
                sync_folder(folder)
                return path
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path} cannot be written", error.strerror or str(error)) from error
    why = f"its {'SHA-256' if len(file.hash) == 64 else 'hash'} is not the promised one, twice"
    raise HashMismatch(f"{file.name} of {listing.repository}", why, "Try again later; the hub or what is between it and you changes bytes")


def here(listing: Listing, file: RemoteFile, folder: Path) -> Path | None:
    """The file where it is complete on this machine: in `folder`, or in the cache of the hub's own tools. Not hashed yet."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = places.expanded(named) if named else hubs.hf_home() / "hub"
    theirs = cache / f"models--{listing.repository.replace('/', '--')}"
    for path in (folder / file.name, theirs / "blobs" / file.hash, theirs / "snapshots" / listing.commit / file.name):
        with suppress(OSError):
            if path.is_file() and path.stat().st_size == file.size:
                return path
    return None


def obtain(hub: Hub | None, listing: Listing, file: RemoteFile, folder: Path, received: Received) -> Path:
    """`here` with its hash compared, else `fetch`. No hub: offline. Raises as fetch."""
    found = here(listing, file, folder)
    if found is not None and is_right(found, file):
        return found
    if hub is None:
        raise NotFound(f"{file.name} of {listing.repository} is not here", "the network is not to be used", "Leave off --offline")
    return fetch(hub, listing, file, folder, received)


def is_right(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the promised hash."""
    with suppress(OSError):
        return _hash(path, file) == file.hash
    return False


def held(file: RemoteFile, folder: Path) -> int:
    """Bytes of the file that its part has already."""
    try:
        with (folder / f"{file.name}.part").open("rb") as part:
            return _Part(part.fileno(), file.size).held
    except (OSError, LlmError):
        return 0


def beginning(hub: Hub, listing: Listing, file: RemoteFile, size: int) -> bytes:
    """The first `size` bytes of the file. They are not checked by anything."""
    patience = Patience(f"{listing.repository}: {file.name}")
    while True:
        try:
            found = bytearray()
            with hub.open(listing, file, 0, size - 1) as body:
                while len(found) < size and (data := body.read(size - len(found))):
                    found += data
            if len(found) == size:
                return bytes(found)
            raise Transient("the connection was cut")
        except Transient as fault:
            patience.again(fault)


class _Part:
    """The journal behind a part's bytes."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size
        count = max(1, min(CONNECTIONS, size // SMALLEST_SEGMENT))
        self.bounds = [size * i // count for i in range(count + 1)]
        self.done = [0] * count
        self._lock = threading.Lock()
        self._stopped = False
        length = os.fstat(descriptor).st_size
        if length == size:
            self.done = [self.length(i) for i in range(count)]
        elif length == size + 8 * count:
            raw = os.pread(descriptor, 8 * count, size)
            self.done = [min(int.from_bytes(raw[8 * i : 8 * i + 8], "little"), self.length(i)) for i in range(count)]

    @property
    def held(self) -> int:
        return sum(self.done)

    def length(self, segment: int) -> int:
        return self.bounds[segment + 1] - self.bounds[segment]

    def prepare(self) -> None:
        """Makes room; an unusable part begins anew."""
        whole = self.size + 8 * len(self.done)
        if os.fstat(self.descriptor).st_size not in (self.size, whole):
            os.ftruncate(self.descriptor, 0)
        if self.held < self.size or not self.size:
            os.ftruncate(self.descriptor, whole)

    def write(self, segment: int, data: bytes) -> None:
        """Adds bytes to a segment; then its journal. Nothing after `stop`: the descriptor may be another file's then."""
        with self._lock:
            if self._stopped:
                raise Transient("stopped")
            start, at = self.bounds[segment] + self.done[segment], 0
            while at < len(data):
                at += os.pwrite(self.descriptor, data[at:], start + at)
            self.done[segment] += len(data)
            os.pwrite(self.descriptor, self.done[segment].to_bytes(8, "little"), self.size + 8 * segment)

    def restart(self) -> None:
        self.done = [0] * len(self.done)
        os.pwrite(self.descriptor, bytes(8 * len(self.done)), self.size)

    def stop(self, stopped: bool = True) -> None:
        with self._lock:
            self._stopped = stopped


def _fill(hub: Hub, listing: Listing, file: RemoteFile, path: Path, received: Received) -> None:
    """Brings a part to its full size and puts its bytes on the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        part = _Part(descriptor, file.size)
        free, missing = shutil.disk_usage(path.parent).free, file.size - part.held
        if missing > free:
            raise DiskError(f"{path} cannot be written", f"it needs {missing / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are free")
        part.prepare()
        received(0)
        try:
            _segments(hub, listing, file, part, received)
        finally:
            part.stop()
        os.fsync(descriptor)
        os.ftruncate(descriptor, file.size)
    finally:
        os.close(descriptor)


def _segments(hub: Hub, listing: Listing, file: RemoteFile, part: _Part, received: Received) -> None:
    """Fetches all segments, each in a thread. This one waits, reports, and leaves at the first error or interrupt."""
    errors: list[BaseException] = []
    known = part.held

    def work(segment: int) -> None:
        try:
            _segment(hub, listing, file, part, segment, errors)
        except BaseException as error:
            errors.append(error)

    wanted = [i for i in range(len(part.done)) if part.done[i] < part.length(i)]
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in wanted]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        threads[0].join(0.1)
        threads = [thread for thread in threads if thread.is_alive()] or threads
        now = part.held
        received(now - known)
        known = now
    if any(isinstance(error, _NoRanges) for error in errors):
        part.stop()
        for thread in threads:
            thread.join()
        _whole(hub, listing, file, part, received)
    elif errors:
        raise errors[0]
    received(part.held - known)


class _NoRanges(Exception):
    """The hub sends whole files only."""


def _segment(hub: Hub, listing: Listing, file: RemoteFile, part: _Part, segment: int, errors: list[BaseException]) -> None:
    patience = Patience(f"{listing.repository}: {file.name}")
    since = 0
    while (left := part.length(segment) - part.done[segment]) and not errors:
        first, last = part.bounds[segment] + part.done[segment], part.bounds[segment + 1] - 1
        try:
            whole = first == 0 and last == file.size - 1
            with hub.open(listing, file, first, None if whole else last) as body:
                if not body.ranged and not whole:
                    raise _NoRanges
                while left and not errors and (data := body.read(min(PIECE, left))):
                    part.write(segment, data)
                    left -= len(data)
                    since += len(data)
                    if since >= PROGRESS:
                        since = 0
                        patience.progressed()
            if left and not errors:
                raise Transient("the connection was cut")
        except Transient as fault:
            if errors:
                return
            patience.again(fault)


def _whole(hub: Hub, listing: Listing, file: RemoteFile, part: _Part, received: Received) -> None:
    """The file over one connection, from its first byte, for hubs without ranges. Each attempt begins anew."""
    patience = Patience(f"{listing.repository}: {file.name}")
    part.stop(False)
    while part.held < part.size:
        received(-part.held)
        part.restart()
        try:
            with hub.open(listing, file) as body:
                segment = 0
                while segment < len(part.done):
                    data = body.read(min(PIECE, part.length(segment) - part.done[segment]))
                    if not data:
                        raise Transient("the connection was cut, and the hub cannot continue in the middle of a file")
                    part.write(segment, data)
                    received(len(data))
                    segment += part.done[segment] == part.length(segment)
        except Transient as fault:
            patience.again(fault)


def _hash(path: Path, file: RemoteFile) -> str:
    """The file's SHA-256, or git's SHA-1 (of a header and the bytes), as its listing promises one; '' for another size."""
    with path.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size != file.size:
            return ""
        digest = hashlib.sha256() if len(file.hash) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while data := opened.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
