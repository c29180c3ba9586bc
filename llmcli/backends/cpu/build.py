"""Compiling the CPU's kernels, by processes that run compile.py (backends/build.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmcli.backends import build
from llmcli.backends.cpu.objects import Key

PROCESSES = 2


def compiled(symbols: Mapping[Key, str]) -> Iterator[tuple[Key, bytes]]:
    """Yields (key, image) of each kernel as it is ready. symbols: the name of each one's function. Raises as build.compiled does."""
    ordered = sorted(symbols, key=_effort, reverse=True)
    requests: dict[Key, tuple[str, object]] = {key: (f"{key[0]} {key[1]}", [key[0], key[1], symbols[key]]) for key in ordered}
    return build.compiled("llmcli.backends.cpu.compile", requests, PROCESSES)


def _effort(key: Key) -> int:
    """Long ones first, so that none is left to one process at the end."""
    slow = {"attention.rows": 100, "top.rows": 50, "step.run": 40}
    return slow.get(key[0], sum(p for p in key[1] if isinstance(p, int)))
