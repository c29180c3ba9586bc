"""What each layer would have predicted: the logit lens.

The residual stream after a layer goes through the final norm and the output head as if it were the last one (nostalgebraist,
"interpreting GPT: the logit lens", 2020). What the later layers add to it shows in the divergence from the model's own prediction. The
plan's tap `lens` computes these logits with the model's own operations and weights, quantized ones too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Result
from llmcli.errors import NumericalError
from llmcli.past import Past, check

ROWS = 8
"""Positions whose logits of all layers are kept at once: what the buffers have room for from the beginning."""


@dataclass(frozen=True, slots=True)
class View:
    """The next token as it looks from one layer. Logarithms are natural."""

    layer: int | None
    """None: from the embeddings, before the first layer."""
    kl: float
    """KL(final || this) in nats: what is lost by taking this distribution for the model's own."""
    top: tuple[tuple[int, float], ...]
    """(id, logprob), likeliest first."""
    final_logprob: float
    """Of the token that the model itself finds likeliest."""
    final_rank: int
    """Its rank here; 1: the likeliest."""


def lens(past: Past, ids: Sequence[int], top: int = 1, first: int | None = None) -> Iterator[tuple[int, list[View]]]:
    """(position, its views from the embeddings to the last layer) for each position from `first` on (None: the last one alone): what is
    likely behind the token there. top: how many of the likeliest tokens a view has. `past` holds the ids afterwards; its engine has the
    tap `lens`. Raises InputError, ContextOverflow, NumericalError."""
    check(past.engine, ids)
    first = len(ids) - 1 if first is None else first
    past.cut(0)
    if first:
        past.compute(ids[:first], "none")
    for at in range(first, len(ids), ROWS):
        yield from enumerate(_views(past.compute(ids[at : at + ROWS], "all"), len(past.engine.plan.cache), top), at)


def _views(result: Result, layers: int, top: int) -> list[list[View]]:
    """The views of each row."""
    final = _logprobs(result.logits)
    probs, best, rows = np.exp(final), result.top_ids[:, :1], range(len(final))
    found: list[list[View]] = [[] for _ in rows]
    for layer in (None, *range(layers)):
        name = "embedding" if layer is None else str(layer)
        logits = result.logits if layer == layers - 1 else result.taps[f"lens.{name}"]
        seen = _logprobs(logits)
        kl = np.maximum((probs * (final - seen)).sum(1), 0.0)
        own = np.take_along_axis(logits, best, 1)
        ranks = 1 + (logits > own).sum(1) + ((logits == own) & (np.arange(logits.shape[1]) < best)).sum(1)
        for row in rows:
            ids = _likeliest(logits[row], top)
            likeliest = tuple(zip(ids.tolist(), seen[row, ids].tolist(), strict=True))
            found[row].append(View(layer, float(kl[row]), likeliest, float(seen[row, best[row, 0]]), int(ranks[row])))
    return found


def _likeliest(logits: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.intp]:
    """The ids of the largest logits, largest first; equal ones by ascending id."""
    least = np.partition(logits, len(logits) - top)[len(logits) - top]
    ids = np.flatnonzero(logits >= least)
    found: npt.NDArray[np.intp] = ids[np.argsort(-logits[ids], kind="stable")][:top]
    return found


def _logprobs(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Raises NumericalError on NaN."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    if not np.isfinite(wide).all():
        raise NumericalError("the model's output is not a number", "NaN or infinity in the logits")
    return wide
