"""Kernels as cubins (a GPU's object code): kept on disk, checked, and compiled by other processes where they are missing.

As with the CPU's objects, a file's name has a digest of all that makes its code, so nothing is ever out of date.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from llmcli import places
from llmcli.backends import build, kept
from llmcli.backends.backend import Notify
from llmcli.backends.cuda import device

ENTRY = b"llm_kernel"
"""The name of the only kernel in a cubin."""
PREFIX, MAKER_BYTES = "cuda-", 8
"""Of a folder's name, which ends with a digest of so many bytes."""
PROCESSES = 8
SOURCES = ("kernels/*.py", "compile.py", "weights.py", "../../kv.py", "../../ops.py")
"""What makes code; of the last three, sizes."""
SLOW = ("attention_prompt", "top", "attention_decode", "decode", "prompt")
"""Modules whose kernels take longest to compile."""

Reference = tuple[str, tuple[Any, ...] | None]
"""A kernel's name (kernels/named.py)."""
Key = tuple[Reference, str]
"""A kernel, and the types of its arguments (driver.signature)."""
Progress = Callable[[str, int, int], None]
"""(kernel that was just compiled, how many were, of how many)."""

_lock = threading.Lock()
_compiling: list[float] = []
"""Seconds that each round of compiling took."""


def load(
    keys: Iterable[Key], capability: tuple[int, int], notify: Notify | None = None, progress: Progress | None = None
) -> dict[Key, bytes]:
    """The cubin of each kernel for GPUs of this compute capability. Compiles what is not kept yet.

    notify hears, in a line each, that kernels are being compiled, of damaged ones, and of a folder that cannot be used; without it the last
    two are warnings. Raises InternalError when a kernel does not compile, ResourceError when no compiler can be started."""
    wanted, warn = list(dict.fromkeys(keys)), notify or kept.warn
    if not wanted:
        return {}
    with _lock:
        folder = kept.folder((places.kernels(), places.kernels() / maker()), warn)
        found = _kept(folder, wanted, capability, warn)
        if len(found) == len(wanted):
            return found
        count = len(wanted) - len(found)
        if notify:
            what = f"{count} kernel{'' if count == 1 else 's'} for the GPU"
            notify(f"compiling {what}; this happens once and takes {'some seconds' if count < 10 else 'up to a minute'}")
        start = time.perf_counter()
        with kept.alone(folder):
            # Whoever comes second finds what the first has compiled.
            found |= _kept(folder, [key for key in wanted if key not in found], capability, warn)
            missing = sorted((key for key in wanted if key not in found), key=_effort)
            requests = {key: (name(key), [*key, capability]) for key in missing}
            for done, (key, code) in enumerate(build.compiled("llmcli.backends.cuda.compile", requests, PROCESSES)):
                if progress:
                    progress(name(key), done + 1, len(missing))
                found[key] = code
                if folder and not kept.keep_kernel(path(folder, key, capability), identity(key, capability), code, warn):
                    folder = None
        _compiling.append(time.perf_counter() - start)
    return found


def compile_seconds() -> float:
    """How long this process has waited for kernels of GPUs to be compiled."""
    return sum(_compiling)


def _kept(folder: Path | None, keys: Iterable[Key], capability: tuple[int, int], warn: Notify) -> dict[Key, bytes]:
    codes = {key: kept.kernel(path(folder, key, capability), identity(key, capability), warn) for key in keys} if folder else {}
    return {key: code for key, code in codes.items() if code}


def stale() -> list[Path]:
    """Folders of cubins that other versions made."""
    folder, ours = places.kernels(), re.compile(rf"{PREFIX}[0-9a-f]{{{2 * MAKER_BYTES}}}")
    if folder.is_symlink() or not folder.is_dir():
        return []
    entries = sorted(folder.iterdir())
    return [x for x in entries if ours.fullmatch(x.name) and x.name != maker() and x.is_dir() and not x.is_symlink()]


def name(key: Key) -> str:
    """What a kernel is called where people read it, such as decode.integers-int4-1-False."""
    return _text(key[0])


def _text(reference: Reference) -> str:
    parameters = reference[1] or ()
    return "-".join([reference[0], *(_text(p) if isinstance(p, tuple) else str(p) for p in parameters)])


def identity(key: Key, capability: tuple[int, int]) -> str:
    """All that tells a kernel's code from others of this version."""
    return repr((key, capability))


def path(folder: Path, key: Key, capability: tuple[int, int]) -> Path:
    """The file of a kernel."""
    digest = hashlib.blake2b(identity(key, capability).encode(), digest_size=8).hexdigest()
    return folder / f"{name(key)}-{architecture(capability)}-{digest}.cubin"


def architecture(capability: tuple[int, int]) -> str:
    """NVIDIA's name of GPUs of this compute capability, such as sm_90."""
    return "sm_{}{}".format(*capability)


def _effort(key: Key) -> int:
    module = key[0][0].partition(".")[0]
    return SLOW.index(module) if module in SLOW else len(SLOW)


def maker() -> str:
    """Names the folder of this version's kernels: of their sources, and of the CUDA version (12, 13) that a driver must have for them. A
    newer compiler for the same CUDA makes no other results, so that code may be compiled on one machine and kept for another."""
    return PREFIX + hashlib.blake2b(repr((device.compiler(), _sources())).encode(), digest_size=MAKER_BYTES).hexdigest()


@cache
def _sources() -> str:
    here, found = Path(__file__).parent, hashlib.blake2b()
    for source in sorted(path for pattern in SOURCES for path in (here / pattern).parent.glob(Path(pattern).name)):
        found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()
