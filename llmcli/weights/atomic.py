"""A file that appears whole or not at all, whatever happens meanwhile: a fault, a signal, kill -9, a power cut.

The bytes go to a hidden temporary file beside the final name; then fsync, rename, and fsync of the folder. Processes
that write the same name take turns (a lock file), and whoever writes next removes what dead processes left behind.
Where the file system's locks keep nobody out, processes stand in line by files of their own.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llmcli.errors import DiskError, InUse
from llmcli.memory import MIB

UNFINISHED = {"lock", "pull", "journal", "tmp"}
"""How hidden files .NAME.KIND end that are there only while somebody works on NAME."""
PAUSE = 0.05
"""Seconds between two looks at what another process holds."""
_places: set[Path] = set()
"""Files of this process's own in lines. Others of its id are a dead process's: in a container, one after the other may have the same."""


@contextmanager
def replacing(path: Path, size: int = 0, waiting: Callable[[int], None] | None = None) -> Iterator[int]:
    """A descriptor to write the new contents of `path` to; leaving the block without an exception puts them there.

    size: bytes that will be written; refused at once where the disk has less room. waiting: called with the process
    id of another writer of the same name before it is waited for. Raises DiskError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with turn(path.with_name(f".{path.name}.lock"), waiting):
            _clean(path.parent)
            free = shutil.disk_usage(path.parent).free
            if size > free:
                raise DiskError(f"{path} cannot be written", f"it needs {size / MIB:,.1f} MiB and the disk has {free / MIB:,.1f} MiB free")
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a sign of life for _clean
                yield descriptor
                os.fsync(descriptor)
                os.rename(temporary, path)
                sync_folder(path.parent)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno is None:  # nothing of the disk's: a library that could not be loaded meanwhile
            raise
        raise DiskError(f"{path} cannot be written", error.strerror or str(error)) from error


@contextmanager
def turn(path: Path, waiting: Callable[[int], None] | None, timeout: float | None = None) -> Iterator[None]:
    """Holds the lock file `path`, which is there only while somebody holds or wants it.

    timeout: seconds after which another holder is not waited for any longer (None: as long as it takes). Raises InUse then."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _lock(descriptor, waiting, timeout)
            if _is_at(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it while we waited: what is there now is another file
    try:
        with ExitStack() as stack:
            if not _locked(path):  # although we hold it
                stack.enter_context(_in_line(path, waiting, timeout))
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield
    finally:
        with suppress(OSError):
            if not _line(path):  # by it, `llm clean` finds those who stand in line
                os.unlink(path)
        os.close(descriptor)


def _lock(descriptor: int, waiting: Callable[[int], None] | None, timeout: float | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0)
        if waiting is not None and holder.isdigit():
            waiting(int(holder))
        if timeout is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_within(descriptor, timeout)
    except OSError:
        return  # no locks on this file system


def _lock_within(descriptor: int, seconds: float) -> None:
    """Asks again and again: a lock has no time limit of its own. Raises InUse."""
    end = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= end:
            raise _still_held(os.pread(descriptor, 20, 0), seconds)
        time.sleep(PAUSE)


def _still_held(holder: bytes, seconds: float) -> InUse:
    process = f"process {holder.decode()}" if holder.isdigit() else "another process"
    return InUse(f"{process} is still at work on it", f"it was waited for {seconds:g} seconds")


@contextmanager
def _in_line(lock: Path, waiting: Callable[[int], None] | None, timeout: float | None) -> Iterator[None]:
    """Lamport's bakery: whoever comes takes a number above all others, and the lowest one's turn it is. While somebody takes a number
    (0), nobody's turn begins. As `turn` otherwise."""
    process, end = os.getpid(), None if timeout is None else time.monotonic() + timeout
    told = False
    places = [_place(lock, 0, process)]
    try:
        _stand(places[0])
        number = 1 + max(n for n, _ in _line(lock))
        places.append(_place(lock, number, process))
        _stand(places[1])  # a moment with both: with neither, who looks then would miss us
        _leave(places.pop(0))
        while before := [other for other in _line(lock) if other < (number, process)]:
            holder = str(before[0][1]).encode()
            if timeout is not None and end is not None and time.monotonic() >= end:
                raise _still_held(holder, timeout)
            if waiting is not None and not told and before[0][0]:
                waiting(before[0][1])
                told = True
            time.sleep(PAUSE)
        yield
    finally:
        for place in places:
            _leave(place)


def _stand(place: Path) -> None:
    _places.add(place.absolute())
    place.touch(0o644)


def _leave(place: Path) -> None:
    place.unlink(missing_ok=True)
    _places.discard(place.absolute())


def _place(lock: Path, number: int, process: int) -> Path:
    return lock.with_name(f"{lock.name.removesuffix('lock')}{number}-{process}.held")


def _line(lock: Path) -> list[tuple[int, int]]:
    """(number, process) of the living ones in line, the first one first. Files of dead ones go."""
    found, name = [], re.compile(rf"{re.escape(lock.name.removesuffix('lock'))}(\d{{1,9}})-(\d{{1,9}})\.held")
    # Twice: one listing may pass the place of a new file before it is there, and that of the file it replaces when that is gone.
    for entry in {*os.listdir(lock.parent), *os.listdir(lock.parent)}:
        if place := name.fullmatch(entry):
            number, process = int(place[1]), int(place[2])
            if _alive(process) and (process != os.getpid() or lock.with_name(entry).absolute() in _places):
                found.append((number, process))
            else:
                with suppress(OSError):
                    os.unlink(lock.with_name(entry))
    return sorted(found)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def abandoned(folder: Path) -> list[Path]:
    """The hidden files that unfinished work left in a folder: of dead processes, or of names whose lock nobody holds."""
    found = []
    for path in sorted(folder.glob(".*")):
        stem, _, kind = path.name.rpartition(".")
        if kind in ("part", "held"):
            process = stem.rpartition(".")[2].split("-")[0 if kind == "part" else -1]
            dead = process.isdigit() and not _alive(int(process))
        else:
            dead = kind in UNFINISHED
        if dead and path.is_file() and not path.is_symlink() and not busy(path) and not busy(folder / f"{stem}.lock"):
            found.append(path)
    return found


def busy(path: Path) -> bool:
    """Whether a process holds a lock on the file, or stands in line for it. What is not there, or no plain file, has none."""
    return _locked(path) or (path.name.endswith(".lock") and path.parent.is_dir() and bool(_line(path)))


def _locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # who holds one has it for himself; NFS gives readers no other
    except BlockingIOError:
        return True
    except OSError:
        pass  # no locks on this file system
    finally:
        os.close(descriptor)
    return False


def _clean(folder: Path) -> None:
    """Removes the temporary files of processes that are gone: nobody holds their lock, and their id is not in use."""
    for path in folder.glob(".*.part"):
        process = path.name.removesuffix(".part").rpartition(".")[2].partition("-")[0]
        if not process.isdigit() or _alive(int(process)):
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
