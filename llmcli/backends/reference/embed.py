"""Looking up rows: token embeddings and learned positions."""

from __future__ import annotations

from llmcli.backends.reference.linear import Matrix
from llmcli.backends.reference.step import Floats, Step


def embed(step: Step, table: Matrix) -> Floats:
    """-> [T, H]: the table's row of each token."""
    return table.values[step.batch.tokens]


def position_add(step: Step, x: Floats, table: Floats, *, offset: int) -> Floats:
    """x [T, H] + the row of each token's position."""
    return x + table[step.batch.positions + offset]
