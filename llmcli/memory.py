"""How much memory there is for us, and a clear refusal before it runs out. Linux figures; elsewhere no limit is known."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from llmcli.errors import OutOfMemory

MIB = 2**20
RESERVED = 24 * MIB
"""Address space that libraries and each thread take beside what they use: measured, stacks (8 MiB) and heaps."""


def available() -> int | None:
    """Bytes that this process may still take: the least of free memory, cgroup limits and RLIMIT_AS; None if unknown."""
    return min(limits().values(), default=None)


def limits() -> dict[str, int]:
    """The same by what limits it, where that is known."""
    cgroups = [x for x in _cgroups() if x is not None]
    found = {"free memory": _free(), "cgroup limit": min(cgroups, default=None), "address space (ulimit -v)": _address_space()}
    return {name: size for name, size in found.items() if size is not None}


def check(needed: int, what: str, todo: str | None = None) -> None:
    """Raises OutOfMemory when `needed` bytes are not available."""
    have = available()
    if have is not None and needed > have:
        why = f"it needs {needed / MIB:,.0f} MiB and {have / MIB:,.0f} MiB are available"
        raise OutOfMemory(f"not enough memory for {what}", why, todo)


def resident() -> int:
    """Bytes of memory that this process has now, without pages of files; 0 if unknown."""
    return _field(Path("/proc/self/status"), "RssAnon:", 1024) or 0


def peak() -> int:
    """Bytes of memory that this process has had at most, pages of files included. (Linux counts in KiB, macOS in bytes.)"""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _free() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable:", 1024)


def _address_space() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    reserved = RESERVED * (1 + (os.cpu_count() or 1))
    return max(0, soft - (_field(Path("/proc/self/status"), "VmSize:", 1024) or 0) - reserved)


def _cgroups() -> list[int | None]:
    """Limit minus use of this process's cgroup and all its ancestors (v2, and v1's memory controller)."""
    found: list[int | None] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for folder in [here, *here.parents]:
            limit = _number(folder / most)
            if limit is not None and limit < 1 << 60:
                # Pages of files are given up when memory is needed, also those that were used twice.
                cached = sum(_field(folder / "memory.stat", f"{kind}_file", 1) or 0 for kind in ("inactive", "active"))
                found.append(max(0, limit - max(0, (_number(folder / used) or 0) - cached)))
            if folder == root:
                break
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str, unit: int) -> int | None:
    """The number after `name` at the start of a line."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
