"""Reporting a number that is not finite: the first one found is kept, the step goes on and is then discarded."""

from __future__ import annotations

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.threads import compare_exchange
from llmcli.backends.cpu.kernels.vectors import field
from llmcli.backends.cpu.records import HEADER


@inline
def report(header, op, token):
    """Writes operation and token row into the step's error word, unless there is something in it."""
    compare_exchange(field(header, HEADER.error), 0, 1 + (op << 32) + token)
