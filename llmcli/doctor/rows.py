"""What a check of `llm doctor` says: a row.

    ok       as it should be
    note     llm run works, but something is unusual, slower than it could be, or may surprise
    problem  llm run cannot work
A note or a problem that somebody can do something about says what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Row:
    """name: of the check; text: what was found; fix: what to do about it, or ''."""

    name: str
    state: State
    text: str
    fix: str = ""


def size(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
