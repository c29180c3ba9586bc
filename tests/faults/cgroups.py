"""Control groups made for one case: so much memory, so much of a CPU. Version 2 where its controllers can be used, else version 1."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000
"""Microseconds of a CPU quota's period."""


@contextmanager
def cgroup(memory: int | None = None, cpus: float | None = None) -> Iterator[list[str]]:
    """A wrapper for a process that may have so many bytes of memory and so many CPUs' worth of time. Skips, counted, where no
    group can be made."""
    second = {}
    first: dict[str, Mapping[str, str]] = {}
    if memory is not None:
        second["memory.max"] = str(memory)
        first["memory"] = {"memory.limit_in_bytes": str(memory)}
    if cpus is not None:
        second["cpu.max"] = f"{round(cpus * PERIOD)} {PERIOD}"
        first["cpu"] = {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(round(cpus * PERIOD))}
    with ExitStack() as stack:
        try:
            if (ROOT / "cgroup.controllers").exists():
                with suppress(OSError):  # said already, or there are processes of ours in the root
                    (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in first))
                folders = [stack.enter_context(_group(ROOT, second))]
            else:
                folders = [stack.enter_context(_group(ROOT / controller, values)) for controller, values in first.items()]
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error.strerror}")
        enter = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in folders)
        yield ["sh", "-c", f'{enter} && exec "$@"', "sh"]


@contextmanager
def _group(parent: Path, values: Mapping[str, str]) -> Iterator[Path]:
    folder = parent / f"llm-test-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        for name, value in values.items():
            (folder / name).write_text(value)
        yield folder
    finally:
        for _ in range(50):  # until the last process in it is gone
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.02)
