"""The next-token distribution as the model gives it: logits, sorted, with what turns them into probabilities.

It knows ids and numbers, not texts. `filters.py` says what sampling makes of it, `pick.py` draws from that.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Distribution:
    """One position's distribution over V tokens."""

    logits: Floats
    """[V], by id."""
    top_ids: Ids
    """[<= 256] ids of the largest logits, largest first, equal ones by ascending id."""
    logsumexp: float
    """Natural log of the sum of exp(logits)."""
    entropy: float
    """In nats."""

    @functools.cached_property
    def order(self) -> Ids:
        """[V] all ids, likeliest first, equal ones by ascending id."""
        return np.argsort(-self.logits, kind="stable").astype(np.int32)

    def best(self, count: int) -> Ids:
        """The `count` likeliest ids."""
        return self.top_ids[:count] if count <= len(self.top_ids) else self.order[:count]

    def logprob(self, token: int) -> float:
        """Natural logarithm of the token's probability, before any filter."""
        return float(self.logits[token]) - self.logsumexp

    def rank(self, token: int) -> int:
        """1 for the likeliest token."""
        value = self.logits[token]
        before = np.count_nonzero(self.logits > value) + np.count_nonzero(self.logits[:token] == value)
        return int(before) + 1

    @property
    def entropy_bits(self) -> float:
        return self.entropy / float(np.log(2.0))
