"""Rolling the weighted die: one token out of a filtered distribution.

The number drawn for a position depends on (seed, position) alone, so that reuse of a prefix, drafts and batches
change nothing: a counter-based generator (two rounds of the splitmix64 finalizer, Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np

from llmcli.sampling.filters import Filtered

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1), 53 bits, of (seed, position)."""
    return (_mix(_mix(seed & _MASK) ^ _mix((position + 1) * 0xD1342543DE82EF95 & _MASK)) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def pick(filtered: Filtered, seed: int, position: int) -> int:
    """The token whose share of [0, 1) holds the position's number, shares laid out from the likeliest on."""
    edges = np.cumsum(filtered.probs)
    index = int(np.searchsorted(edges, uniform(seed, position) * edges[-1], side="right"))
    last = int(np.flatnonzero(filtered.probs)[-1])
    return int(filtered.ids[min(index, last)])
