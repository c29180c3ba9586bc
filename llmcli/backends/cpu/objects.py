"""Kernels as object code that is already linked (images.py): kept on disk, checked, and placed in this process.

A sub-folder is named by a digest of what makes code (CPU, compiler, kernel sources) and a file in it also by the kernel,
so nothing is ever out of date, and what is of no use any more (`stale`) is seen from names alone. What is missing is
compiled in other processes (build.py), because importing Numba takes longer than a whole run from kept objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from llmcli import places
from llmcli.backends.backend import Notify
from llmcli.backends.cpu import host, images, kept, target

SHARED_SOURCES = ("images.py", "records.py", "target.py", "tiles.py")
"""What kernels import besides each other."""

Key = tuple[str, tuple[int | str, ...]]
"""A kernel: ("linear.int8", (4,)) is the one that `int8` of kernels/linear.py makes for the parameter 4."""
Progress = Callable[[str, int, int], None]
"""(kernel that was just compiled, how many were, of how many)."""

MAKER_BYTES = 8
"""Bytes of the digest that names a sub-folder."""
_CPU = re.compile(r"cpu-[0-9a-f]{32}")
"""The names of host.py's files."""
_FILE = re.compile(r"(\.part-\d+-)?[a-z0-9_]+\.[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{32}\.o")
"""The names of objects; older versions kept them without sub-folders."""

_lock = threading.Lock()
_addresses: dict[Key, int] = {}
_compiling: list[float] = []
"""Seconds that each round of compiling took."""


def load(keys: Iterable[Key], notify: Notify | None = None, progress: Progress | None = None) -> dict[Key, int]:
    """The address of each kernel, which stays valid for the life of the process. Compiles what is not kept yet.

    notify hears, in a line each, that kernels are being compiled, of damaged ones, and of a folder that cannot be used;
    without it the last two are warnings. Raises InternalError when a kernel does not compile, ResourceError when no
    compiler can be started."""
    wanted = list(dict.fromkeys(keys))
    with _lock:
        new = [key for key in wanted if key not in _addresses]
        if new:
            _link(_codes(new, notify, progress))
        return {key: _addresses[key] for key in wanted}


def ready(key: Key, notify: Notify | None = None) -> int | None:
    """The address of a kernel that need not be compiled for it, else None."""
    with _lock:
        if key not in _addresses:
            codes = _kept(_folder(lambda text: None), [key], notify or _warn)
            if not codes:
                return None
            _link(codes)
        return _addresses[key]


def compile_seconds() -> float:
    """How long this process has waited for kernels to be compiled."""
    return sum(_compiling)


def digest(key: Key) -> str:
    """Names a kernel's code: what it is made from, by what, for which CPU."""
    return hashlib.blake2b(repr((key, _maker())).encode(), digest_size=16).hexdigest()


@cache
def _maker() -> tuple[str, ...]:
    here = Path(__file__).parent
    sources = hashlib.blake2b()
    for path in sorted([*(here / "kernels").glob("*.py"), *(here / name for name in SHARED_SOURCES)]):
        sources.update(path.name.encode() + b"\0" + path.read_bytes())
    return target.name(), target.features_text(), host.version("llvmlite"), host.version("numba"), sources.hexdigest()


def maker() -> str:
    """Names the sub-folder of this version's kernels for this CPU."""
    return hashlib.blake2b(repr(_maker()).encode(), digest_size=MAKER_BYTES).hexdigest()


def stale() -> list[Path]:
    """Folders and files among the kept objects that other versions or CPUs made; nothing that we did not name. Links are left
    alone, and so is a folder of kernels that is one."""
    folder = places.kernels()
    if folder.is_symlink():
        return []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    ours = re.compile(rf"[0-9a-f]{{{2 * MAKER_BYTES}}}")
    return [
        Path(entry.path)
        for entry in entries
        if (entry.is_dir(follow_symlinks=False) and ours.fullmatch(entry.name) and entry.name != maker())
        or (entry.is_file(follow_symlinks=False) and _outdated(entry.name))
    ]


def _outdated(name: str) -> bool:
    """Whether a file beside the sub-folders is of no use to this version on this CPU."""
    return name == ".lock" or bool(_FILE.fullmatch(name)) or (bool(_CPU.fullmatch(name)) and name != host.current())


def _link(codes: dict[Key, bytes]) -> None:
    _addresses.update(zip(codes, images.placed(list(codes.values())), strict=True))


def symbol(key: Key) -> str:
    """The name of a kernel's function in its object: unlike any other's in the process."""
    return f"llm_{digest(key)}"


def _codes(keys: list[Key], notify: Notify | None, progress: Progress | None) -> dict[Key, bytes]:
    """The object code of each kernel, from disk or compiled."""
    warn = notify or _warn
    folder = _folder(warn)
    codes = _kept(folder, keys, warn)
    if len(codes) == len(keys):
        return codes
    from llmcli.backends.cpu import build  # only now: it imports what other runs do without

    if notify:
        count = len(keys) - len(codes)
        notify(f"compiling {count} kernel{'' if count == 1 else 's'} for this computer; this happens once and takes some seconds")
    start = time.perf_counter()
    with _alone(folder):
        # Whoever comes second finds what the first has compiled.
        codes |= _kept(folder, [key for key in keys if key not in codes], warn)
        missing = {key: symbol(key) for key in keys if key not in codes}
        for done, (key, code) in enumerate(build.compiled(missing)):
            if progress:
                progress(key[0], done + 1, len(missing))
            codes[key] = code
            if folder and not _write(folder, key, code, warn):
                folder = None
    _compiling.append(time.perf_counter() - start)
    return codes


def _kept(folder: Path | None, keys: Iterable[Key], warn: Notify) -> dict[Key, bytes]:
    """The object code of those kernels that are in the folder."""
    found = {key: _read(folder, key, warn) for key in keys} if folder else {}
    return {key: code for key, code in found.items() if code}


def _folder(warn: Notify) -> Path | None:
    """The folder of kept objects, or None where what lies in it could be somebody else's code."""
    for folder in (places.kernels(), places.kernels() / maker()):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            warn(f"no folder for compiled kernels, so they are compiled again each time: {error}")
            return None
        if kept.foreign(found):
            warn(f"compiled kernels in {folder} are not used, because others could write there (chmod go-w, or set LLMCLI_KERNELS)")
            return None
    host.keep()
    return folder


def count_kept(keys: Iterable[Key]) -> tuple[int, str]:
    """How many of these kernels have an object (not opened here), and why the folder of objects is not used, or ''. Writes nothing."""
    folder = places.kernels() / maker()
    for place in (places.kernels(), folder):
        try:
            if kept.foreign(place.stat()):
                return 0, f"others could write in {place}"
        except FileNotFoundError:
            return 0, ""
        except OSError as error:
            return 0, f"{place}: {error.strerror}"
    return sum(_path(folder, key).is_file() for key in keys), ""


def _path(folder: Path, key: Key) -> Path:
    return folder / "-".join([key[0], *map(str, key[1]), digest(key) + ".o"])


def _read(folder: Path, key: Key, warn: Notify) -> bytes | None:
    """The kept object, or None. A damaged one is deleted."""
    path = _path(folder, key)
    try:
        return kept.read(path, symbol(key))
    except kept.Damaged:
        warn(f"compiled kernel {path.name} is damaged; compiling it again")
        return None


def _write(folder: Path, key: Key, code: bytes, warn: Notify) -> bool:
    """Keeps an object, whole or not at all. Says whether it could."""
    try:
        kept.write(_path(folder, key), symbol(key), code)
        return True
    except OSError as error:
        warn(f"compiled kernels cannot be kept, so they are compiled again each time: {error}")
        return False


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
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


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
