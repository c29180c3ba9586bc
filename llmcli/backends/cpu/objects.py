"""Kernels as object code: kept on disk, checked, and linked into this process by llvmlite alone.

A kernel is known by its key, such as ("linear.int8", (4,)): its module and name among the kernels, and parameters.
An object's file name ends in a digest of everything that decides its code, so nothing is ever out of date: another
CPU, compiler or kernel source means another file. What is missing is compiled in other processes (build.py), because
importing Numba takes longer than a whole run from kept objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from llmcli import places
from llmcli.backends.cpu import build, target
from llmcli.errors import InternalError

Key = tuple[str, tuple[int | str, ...]]
Progress = Callable[[int, int, str], None]
"""(compiled, to compile, name of the last one); the first call comes before compiling starts."""

MAGIC = b"llmobj1\n"
CHECK_BYTES = 32
SHARED_SOURCES = ("records.py", "target.py", "tiles.py")
"""What kernels import besides each other."""

_lock = threading.Lock()
_addresses: dict[Key, int] = {}


def load(keys: Iterable[Key], progress: Progress | None = None) -> dict[Key, int]:
    """The address of each kernel, which stays valid for the life of the process. Compiles what is not kept yet,
    telling `progress`. Warns about damaged objects and about a folder that cannot be used.

    Raises InternalError when a kernel does not compile, ResourceError when no compiler can be started."""
    wanted = list(dict.fromkeys(keys))
    with _lock:
        new = [key for key in wanted if key not in _addresses]
        if new:
            _link(_codes(new, progress))
        return {key: _addresses[key] for key in wanted}


def digest(key: Key) -> str:
    """Names a kernel's code: what it is made from, by what, for which CPU."""
    return hashlib.blake2b(repr((key, _maker())).encode(), digest_size=16).hexdigest()


@cache
def _maker() -> tuple[str, ...]:
    here = Path(__file__).parent
    sources = hashlib.blake2b()
    for path in sorted([*(here / "kernels").glob("*.py"), *(here / name for name in SHARED_SOURCES)]):
        sources.update(path.name.encode() + b"\0" + path.read_bytes())
    return target.name(), target.features_text(), llvmlite.__version__, _numba(), sources.hexdigest()


def _numba() -> str:
    """What tells versions of Numba apart, without importing it or the slow importlib.metadata."""
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        raise InternalError("numba is not installed", todo="Install llmcli again")
    return Path(spec.origin).with_name("_version.py").read_text()


def _link(codes: dict[Key, bytes]) -> None:
    engine = _engine()
    for code in codes.values():
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for key in codes:
        _addresses[key] = engine.get_function_address(symbol(key))


@cache
def _engine() -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine(jit=True))


def symbol(key: Key) -> str:
    """The name of a kernel's function in its object: unlike any other's in the process."""
    return f"llm_{digest(key)}"


def _codes(keys: list[Key], progress: Progress | None) -> dict[Key, bytes]:
    """The object code of each kernel, from disk or compiled."""
    folder = _folder()
    kept = {key: _read(folder, key) for key in keys} if folder else {}
    codes = {key: code for key, code in kept.items() if code}
    if len(codes) == len(keys):
        return codes
    with _alone(folder):  # whoever comes second finds what the first has compiled
        codes.update({key: code for key in keys if folder and key not in codes and (code := _read(folder, key))})
        missing = {key: symbol(key) for key in keys if key not in codes}
        for key, code in build.compiled(missing, progress) if missing else ():
            codes[key] = code
            if folder and not _write(folder, key, code):
                folder = None
    return codes


def _folder() -> Path | None:
    """The folder of kept objects, or None where what lies in it could be somebody else's code."""
    folder = places.kernels()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        _warn(f"no folder for compiled kernels, so they are compiled again each time: {error}")
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        _warn(f"compiled kernels in {folder} are not used, because others could write there (chmod go-w, or LLMCLI_KERNELS)")
        return None
    return folder


def _path(folder: Path, key: Key) -> Path:
    return folder / "-".join([key[0], *map(str, key[1]), digest(key) + ".o"])


def _check(key: Key, code: bytes) -> bytes:
    """A checksum that ties the code to its key: one kernel's file under another's name is damage too."""
    return hashlib.blake2b(symbol(key).encode() + code, digest_size=CHECK_BYTES).digest()


def _read(folder: Path, key: Key) -> bytes | None:
    """The kept object, or None. A damaged one is deleted."""
    path = _path(folder, key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(MAGIC) + CHECK_BYTES
    code = data[head:]
    if data[:head] == MAGIC + _check(key, code):
        return code
    _warn(f"compiled kernel {path.name} is damaged; compiling it again")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _write(folder: Path, key: Key, code: bytes) -> bool:
    """Keeps an object, whole or not at all. Says, and warns, when it cannot."""
    part = None
    try:
        descriptor, part = tempfile.mkstemp(dir=folder, prefix=".part-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + _check(key, code) + code)
        os.replace(part, _path(folder, key))
        return True
    except OSError as error:
        if part:
            with contextlib.suppress(OSError):
                os.unlink(part)
        _warn(f"compiled kernels cannot be kept, so they are compiled again each time: {error}")
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
    warnings.warn(text, RuntimeWarning, stacklevel=3)
