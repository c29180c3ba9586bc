"""From the model's distribution to the one that is drawn from, and why each token fell out.

Order, as in llama.cpp: penalties and bias change logits; top-k, top-p and min-p remove tokens, each renormalising
what the one before left; temperature shapes the rest. Most steps need only the 256 largest logits that the backend
has already found; `_pool` says when that is not enough and all V are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcli.errors import NumericalError
from llmcli.sampling.distribution import Distribution, Doubles, Ids
from llmcli.sampling.settings import LAST, Settings

TOP_K, TOP_P, MIN_P, BIAS, TEMPERATURE = "top_k", "top_p", "min_p", "logit_bias", "temperature"


@dataclass(frozen=True)
class Filtered:
    """What sampling made of a distribution. All other tokens than `ids` have final probability 0."""

    ids: Ids
    """[n] the tokens that were looked at, likeliest first after penalties and bias."""
    probs: Doubles
    """[n] final probabilities; they sum to 1."""
    removed_by: list[str | None]
    """[n] the filter that removed each token, None for those that stay."""
    default: str | None
    """The filter that removed every token not in `ids`."""

    def of(self, token: int) -> tuple[float, str | None]:
        """(final probability, the filter that removed it or None) of any token."""
        where = np.flatnonzero(self.ids == token)
        if len(where) == 0:
            return 0.0, self.default
        return float(self.probs[where[0]]), self.removed_by[where[0]]


def apply(distribution: Distribution, settings: Settings, history: Sequence[int] = ()) -> Filtered:
    """The filters of `settings`. history: the tokens so far, oldest first (for penalties).

    Raises NumericalError when every token is banned.
    """
    changes = _changes(distribution, settings, history)
    ids, values = _pool(distribution, settings, changes)
    complete = len(ids) == len(distribution.logits)
    # Mass beyond the pool, relative to the largest value: only ever needed where nothing has been removed yet.
    outside = 0.0 if complete or changes else max(0.0, np.exp(distribution.logsumexp - values[0]) - np.exp(values - values[0]).sum())
    removed: list[str | None] = [None] * len(ids)
    alive = np.isfinite(values)
    if not alive.any():
        raise NumericalError("no token is left to choose from", "the biases ban them all", "Allow some tokens")
    _remove(removed, ~alive, BIAS)
    if settings.temperature <= 0.0:
        keep = np.zeros(len(ids), bool)
        keep[0] = True
        _remove(removed, alive & ~keep, TEMPERATURE)
        return Filtered(ids, keep.astype(np.float64), removed, TEMPERATURE)
    default: str | None = None
    if settings.top_k:
        beyond = np.arange(len(ids)) >= settings.top_k
        _remove(removed, alive & beyond, TOP_K)
        alive &= ~beyond
        outside, default = 0.0, TOP_K
    if settings.top_p < 1.0:
        weights = np.where(alive, np.exp(values - values[0]), 0.0)
        before = np.cumsum(weights) - weights
        beyond = before >= settings.top_p * (weights.sum() + outside)
        beyond[0] = False
        _remove(removed, alive & beyond, TOP_P)
        alive &= ~beyond
        default = default or TOP_P
    if settings.min_p > 0.0:
        beyond = np.exp(values - values[0]) < min(settings.min_p, 1.0)
        _remove(removed, alive & beyond, MIN_P)
        alive &= ~beyond
        default = default or MIN_P
    with np.errstate(over="ignore"):  # a tiny temperature makes -infinity of a difference: probability 0
        weights = np.where(alive, np.exp((values - values[0]) / settings.temperature), 0.0)
    return Filtered(ids, weights / weights.sum(), removed, default)


def _remove(removed: list[str | None], which: npt.NDArray[np.bool_], name: str) -> None:
    for index in np.flatnonzero(which):
        removed[index] = removed[index] or name


def _changes(distribution: Distribution, settings: Settings, history: Sequence[int]) -> dict[int, float]:
    """New logits of the tokens that penalties or biases touch."""
    changes: dict[int, float] = {}
    if settings.penalised:
        counts: dict[int, int] = {}
        for token in history[-LAST:]:
            counts[token] = counts.get(token, 0) + 1
        for token, count in counts.items():
            value = float(distribution.logits[token])
            value = value / settings.repeat_penalty if value > 0 else value * settings.repeat_penalty
            changes[token] = value - settings.presence_penalty - settings.frequency_penalty * count
    for token, bias in settings.logit_bias.items():
        if 0 <= token < len(distribution.logits):
            changes[token] = changes.get(token, float(distribution.logits[token])) + bias
    return changes


def _pool(distribution: Distribution, settings: Settings, changes: dict[int, float]) -> tuple[Ids, Doubles]:
    """The ids that can matter and their logits (f64), largest first."""
    ids = distribution.top_ids
    if not _enough(distribution, settings, len(changes)):
        ids = distribution.order
    values = distribution.logits[ids].astype(np.float64)
    if not changes:
        return ids, values
    extra = np.array([token for token in changes if token not in set(ids.tolist())], np.int32)
    ids = np.concatenate([ids, extra])
    values = np.concatenate([values, distribution.logits[extra].astype(np.float64)])
    for token, value in changes.items():
        values[np.flatnonzero(ids == token)[0]] = value
    order = np.lexsort((ids, -values))
    return ids[order], values[order]


def _enough(distribution: Distribution, settings: Settings, changes: int) -> bool:
    """Whether the tokens in top_ids decide the result whatever the rest holds."""
    known = len(distribution.top_ids)
    if known == len(distribution.logits):
        return True
    wanted = 1 if settings.temperature <= 0.0 else settings.top_k
    if wanted:
        return wanted + changes <= known
    if changes:
        return False
    largest, smallest = (float(distribution.logits[distribution.top_ids[i]]) for i in (0, -1))
    if settings.min_p > 0.0 and np.exp(smallest - largest) < settings.min_p:
        return True
    mass = np.exp(distribution.logits[distribution.top_ids].astype(np.float64) - distribution.logsumexp).sum()
    return settings.top_p < 1.0 and bool(mass - np.exp(smallest - distribution.logsumexp) >= settings.top_p)
