"""Numbers for people."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in the largest binary unit that leaves a number of 1 or more, with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def amount(count: float) -> str:
    """A number of things in thousands, millions or billions, with three digits."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}" if unit else f"{count:,}"
        count /= 1000
    return f"{count:,.3g}B"
