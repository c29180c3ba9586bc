"""What LLVM says of this CPU, without LLVM: its answer is kept beside the kernels, for each CPU and version of llvmlite.

A run from kept kernels therefore never loads LLVM, which takes some 40 ms and 53 MB. The CPU is recognized by the system's description.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from llmcli import places
from llmcli.backends.cpu import kept
from llmcli.errors import InternalError

DESCRIPTION = Path("/proc/cpuinfo")
IDENTITY = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"} | {
    "Features",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
}
"""Lines of the first processor's description that do not change while it runs, on x86 and on Arm."""


@cache
def answer() -> tuple[str, str]:
    """(the CPU's name, its features as given to LLVM: '+avx2,-sse4a,...')."""
    path = _path()
    if path is None or (found := _kept(path)) is None:
        found = _asked()
        _new.append(found)
    return found


def keep() -> None:
    """Keeps LLVM's answer, where it had to be asked. The folder of kernels is there, and ours alone."""
    if _new and (path := _path()) is not None:
        with contextlib.suppress(OSError):  # the next run will ask again
            kept.write(path, path.name, "\n".join(_new.pop()).encode())


def current() -> str:
    """The name of this CPU's file, '' where there is none."""
    path = _path()
    return path.name if path else ""


_new: list[tuple[str, str]] = []
"""The answer, while it is not kept."""


def version(package: str) -> str:
    """What tells versions of a package apart, without importing it or the slow importlib.metadata."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InternalError(f"{package} is not installed", todo="Install llmcli again")
    return Path(spec.origin).with_name("_version.py").read_text()


def _kept(path: Path) -> tuple[str, str] | None:
    try:
        if kept.foreign(path.parent.stat()):
            return None
        data = kept.read(path, path.name)
    except (OSError, kept.Damaged):
        return None
    if data is None:
        return None
    name, features = data.decode().split("\n")
    return name, features


def _asked() -> tuple[str, str]:
    import llvmlite.binding as llvm

    try:
        features = str(llvm.get_host_cpu_features().flatten(sort=True))
    except RuntimeError:  # LLVM cannot tell on this system
        features = ""
    return str(llvm.get_host_cpu_name()), features


def _path() -> Path | None:
    """Where this CPU's answer is kept; None on a system that does not describe it."""
    try:
        with DESCRIPTION.open() as file:
            lines = [line for line in _first(file.read(8192)) if line.partition(":")[0].strip() in IDENTITY]
    except OSError:
        return None
    if not lines:
        return None
    digest = hashlib.blake2b("\n".join([*lines, version("llvmlite")]).encode(), digest_size=16).hexdigest()
    return places.kernels() / f"cpu-{digest}"


def _first(text: str) -> list[str]:
    """The lines of the first processor."""
    return text.partition("\n\n")[0].splitlines()
