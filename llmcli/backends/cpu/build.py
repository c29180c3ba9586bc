"""Compiling the CPU's kernels, by processes that run compile.py (backends/build.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from llmcli import memory
from llmcli.backends import build
from llmcli.backends.cpu.objects import Key

PROCESSES = 2
USUAL, LEAST = 224 << 20, 136 << 20
"""Bytes that a compiler takes after all kernels of `llm warmup`, and after those of a small model alone: measured, with its libraries."""


def compiled(symbols: Mapping[Key, str]) -> Iterator[tuple[Key, bytes]]:
    """Yields (key, image) of each kernel as it is ready. symbols: the name of each one's function. Raises as build.compiled does, and
    OutOfMemory where there is no room for a compiler."""
    count = _processes()
    ordered = sorted(symbols, key=_effort, reverse=True)
    requests: dict[Key, tuple[str, object]] = {key: (f"{key[0]} {key[1]}", [key[0], key[1], symbols[key]]) for key in ordered}
    return build.compiled("llmcli.backends.cpu.compile", requests, count)


def _processes() -> int:
    """How many compilers there are CPUs and memory for: one too many is ended by the system, or this process is."""
    memory.check(LEAST, "the kernel compiler", build.TODO)
    room = memory.available()
    return max(1, min(PROCESSES, os.cpu_count() or 1, PROCESSES if room is None else room // USUAL))


def _effort(key: Key) -> int:
    """Long ones first, so that none is left to one process at the end."""
    slow = {"attention.rows": 100, "top.rows": 50, "step.run": 40}
    return slow.get(key[0], sum(p for p in key[1] if isinstance(p, int)))
