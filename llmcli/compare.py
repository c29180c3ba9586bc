"""Two models on one text: how far the second one's distribution of each next token is from the first one's.

Both read the text side by side, some rows at a time, and each row is compared while it is there: no file of logits, and memory does not
grow with the text (but for 8 bytes a token, for quantiles). It yields records and never prints.
"""

from __future__ import annotations

import heapq
import itertools
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmcli.engine import Engine
from llmcli.errors import InputError, TokenizerMismatch
from llmcli.intervals import Series
from llmcli.past import Past, check_known
from llmcli.scoring import Scored, Totals, predictions, records, windows

ROWS = 16
"""Rows that are compared at once: their float64 copies then stay in a CPU's cache."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A token of the text, as both models see it. The first of a text follows nothing: `kl` is NaN, `same_top` False."""

    a: Scored
    b: Scored
    kl: float
    """KL(a || b) of the distributions at this place over the whole vocabulary, in nats."""
    same_top: bool
    """Whether the likeliest token is the same."""


def check(a: Engine, b: Engine) -> None:
    """Raises TokenizerMismatch unless each id is the same token to both."""
    both = f"{a.name} and {b.name} cannot be compared"
    if a.plan.vocab != b.plan.vocab:
        raise TokenizerMismatch(both, f"they have {a.plan.vocab:,} and {b.plan.vocab:,} tokens")
    for number in range(a.plan.vocab):
        left, right = a.tokenizer.token_bytes(number), b.tokenizer.token_bytes(number)
        if left != right or (number in a.tokenizer.control) != (number in b.tokenizer.control):
            shown = (data.decode("utf-8", "backslashreplace") for data in (left, right))
            raise TokenizerMismatch(both, "token {} is {!r} to one and {!r} to the other".format(number, *shown))


def check_ids(a: Engine, b: Engine, first: Sequence[int], second: Sequence[int]) -> None:
    """Raises TokenizerMismatch unless both have cut the text into the same tokens."""
    if first != second:
        at = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))
        raise TokenizerMismatch(f"{a.name} and {b.name} cannot be compared", f"they cut the text differently from token {at:,} on")


def compare(
    a: Engine, b: Engine, ids: Sequence[int], top: int = 0, window: int | None = None, stride: int | None = None
) -> Iterator[Compared]:
    """A record for each of `ids`, in order, as they are computed. top: how many of its likeliest tokens each model lists; window, stride:
    as in `scoring.score`, by default for the smaller of the contexts.

    Raises TokenizerMismatch, UsageError, InputError when there are no tokens or one is unknown, NumericalError.
    """
    check(a, b)
    size, step = windows(min(a, b, key=lambda engine: engine.context), window, stride)
    if not ids:
        raise InputError("the text is empty", "there is nothing to compare", "Give it some text")
    check_known(a, ids)
    with ExitStack() as stack:
        left, right = stack.enter_context(Past(a)), stack.enter_context(Past(b))
        start = first = 0
        while first < len(ids):
            if first == start:
                alone = Scored(start, ids[start])
                yield Compared(alone, alone, math.nan, False)
                first += 1
            part = ids[start : start + size]
            for (at, p), (_, q) in zip(predictions(left, part, first - start), predictions(right, part, first - start), strict=True):
                tokens, position = part[at : at + len(p.logits)], start + at
                kl, same = divergences(p.logits, q.logits).tolist(), (p.top_ids[:, 0] == q.top_ids[:, 0]).tolist()
                yield from itertools.starmap(
                    Compared, zip(records(p, tokens, position, top), records(q, tokens, position, top), kl, same, strict=True)
                )
            first = start + len(part)
            start += step


def divergences(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[R] KL(p || q) of rows of logits [R, V], in nats, computed in float64."""
    found = np.empty(len(p), np.float64)
    for at in range(0, len(p), ROWS):
        left, right = _log_softmax(p[at : at + ROWS]), _log_softmax(q[at : at + ROWS])
        right -= left
        np.exp(left, out=left)
        found[at : at + ROWS] = -np.einsum("rv,rv->r", left, right)
    return np.maximum(found, 0.0)  # rounding: it cannot be less


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return values


@dataclass
class Differences:
    """Sums over the records of a text, and its worst places."""

    most: int = 10
    """Worst places that are kept."""
    a: Totals = field(default_factory=Totals)
    b: Totals = field(default_factory=Totals)
    kl: Series = field(default_factory=Series)
    same: Series = field(default_factory=Series)
    _all: array[float] = field(default_factory=lambda: array("d"))
    _worst: list[tuple[float, int, Compared, str]] = field(default_factory=list)

    def add(self, token: Compared, size: int, before: str) -> None:
        """size: bytes of text that the token stands for; before: the text before it."""
        self.a.add(token.a, size)
        self.b.add(token.b, size)
        if token.a.rank:
            self.kl.add((token.kl,))
            self.same.add((float(token.same_top),))
            self._all.append(token.kl)
            place = (token.kl, -token.a.position, token, before)  # no two have the same position
            if token.kl > 0.0 and len(self._worst) < self.most:
                heapq.heappush(self._worst, place)
            elif token.kl > 0.0 and self.most:
                heapq.heappushpop(self._worst, place)

    @property
    def worst(self) -> list[tuple[Compared, str]]:
        """The places of the largest divergences and the texts before them, the largest first."""
        return [(token, before) for _, _, token, before in sorted(self._worst, reverse=True)]

    def quantile(self, share: float) -> float:
        """Of the divergences; NaN where there are none."""
        return float(np.quantile(np.frombuffer(self._all, np.float64), share)) if self._all else math.nan
