"""How likely a given text is, token by token: its probability, its rank, and what the model would have said instead.

    window 1   [0 ............. W)                scores tokens 1 to W - 1
    window 2        [S ............. S + W)       scores the last S of its tokens, and so on
A text that is longer than the context is read in windows of W tokens, each S (the stride) further: every token is predicted from at
least W - S tokens before it, or from all there are (as in the "fixed-length models" guide of transformers). Logits are computed only
for rows that predict something new, some rows at a time, so memory does not grow with the text. It yields records and never prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Result
from llmcli.engine import MOST_TOKENS, Engine
from llmcli.errors import InputError, NumericalError, UsageError
from llmcli.past import Past, check_known, common

LOGITS = 32 << 20
"""Bytes of logits that are kept at once. A vocabulary of 49,152 tokens then has 170 rows: still a step bound by arithmetic."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One token of a text. Logarithms are natural. The first token, and where windows do not overlap the first of each, follows nothing:
    its numbers are NaN and its rank 0."""

    position: int
    """From 0."""
    id: int
    logprob: float = math.nan
    rank: int = 0
    """1: the likeliest."""
    entropy_bits: float = math.nan
    """Of the whole distribution."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, logprob) of the likeliest tokens at this place, likeliest first."""

    @property
    def bits(self) -> float:
        """The surprise: -log2 of the token's probability."""
        return bits(self.logprob)


def bits(logprob: float) -> float:
    """-log2 of the probability that this is the natural logarithm of."""
    return max(0.0, -logprob / math.log(2)) if logprob == logprob else math.nan


@dataclass
class Totals:
    """Sums over a text's records."""

    tokens: int = 0
    scored: int = 0
    logprob: float = 0.0
    """Sum over the scored tokens: the logarithm of the text's probability after its first token."""
    bytes: int = 0
    """Of the scored tokens' text."""

    def add(self, token: Scored, size: int) -> None:
        """size: bytes of text that the token stands for; none for control tokens."""
        self.tokens += 1
        if token.rank:
            self.scored += 1
            self.logprob += token.logprob
            self.bytes += size

    @property
    def perplexity(self) -> float:
        """e to the mean negative logarithm of a token's probability; NaN for less than two tokens."""
        if not self.scored:
            return math.nan
        mean = -self.logprob / self.scored
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Does not depend on how a tokenizer cuts the text: models of different vocabularies can be compared."""
        return bits(self.logprob) / self.bytes if self.bytes else math.nan


def windows(engine: Engine, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """(window, stride) in tokens; None: the context, and half the window. Raises UsageError for what cannot be."""
    size = engine.context if window is None else window
    if not 2 <= size <= engine.context:
        raise UsageError(f"a window of {size:,} tokens", f"the context has room for 2 to {engine.context:,}", "Change --window or -c")
    step = size // 2 if stride is None else stride
    if not 1 <= step <= size:
        raise UsageError(f"a stride of {step:,} tokens", f"the windows have {size:,}: 1 to {size:,}", "Change --stride")
    return size, step


def score(
    engine: Engine, ids: Sequence[int], top: int = 0, window: int | None = None, stride: int | None = None, past: Past | None = None
) -> Iterator[Scored]:
    """A record for each of `ids`, in order, as they are computed. top: how many of the likeliest tokens each has; past: what may have
    computed some of the tokens, and holds the last window afterwards.

    Raises UsageError (see `windows`), InputError when there are no tokens or one is unknown, NumericalError.
    """
    size, step = windows(engine, window, stride)
    if not ids:
        raise InputError("the text is empty", "there is nothing to score", "Give it some text")
    check_known(engine, ids)  # the last one is predicted and never computed
    if past is not None:
        yield from _score(past, ids, top, size, step)
        return
    with Past(engine) as own:
        yield from _score(own, ids, top, size, step)


def _score(past: Past, ids: Sequence[int], top: int, size: int, step: int) -> Iterator[Scored]:
    start = first = 0
    while first < len(ids):
        if first == start:
            yield Scored(start, ids[start])
            first += 1
        part = list(ids[start : start + size])
        yield from scored(past, part, first - start, top, start)
        first = start + len(part)
        start += step


def scored(past: Past, ids: Sequence[int], first: int, top: int = 0, start: int = 0) -> Iterator[Scored]:
    """Records of ids[first:], each after all before it. first: 1 or more; start: position of ids[0] in its text. Computes only what
    `past` does not have. Raises as `Past.read` does."""
    for at, result in predictions(past, ids, first):
        yield from records(result, ids[at : at + len(result.logits)], start + at, top)


def logprobs(past: Past, ids: Sequence[int], first: int) -> list[float]:
    """Logarithms of the probabilities of ids[first:], each after all before it. first: 1 or more. Computes only what `past` does not
    have. Raises as `Past.read` does."""
    check_known(past.engine, ids)
    found: list[float] = []
    for at, result in predictions(past, ids, first):
        found += _logprobs(result, np.array(ids[at : at + len(result.logits)], np.int32)).tolist()
    return found


def predictions(past: Past, ids: Sequence[int], first: int) -> Iterator[tuple[int, Result]]:
    """The steps that predict ids[first:], as (at, result): row i of the result predicts ids[at + i]. A result is good until the next."""
    past.cut(min(common(past.ids, ids), first - 1))
    if len(past.ids) < first - 1:
        past.compute(ids[len(past.ids) : first - 1], "none")
    rows = min(MOST_TOKENS, max(8, LOGITS // (4 * past.engine.plan.vocab)))
    for at in range(first, len(ids), rows):
        result = past.compute(ids[at - 1 : min(at - 1 + rows, len(ids) - 1)], "all")
        if not np.isfinite(result.logsumexp).all():
            raise NumericalError("the model's output is not a number", "NaN or infinity in the logits")
        yield at, result


def records(result: Result, ids: Sequence[int], position: int, top: int) -> Iterator[Scored]:
    """Records of the tokens that the rows of a result predict; position: of the first."""
    targets = np.array(ids, np.int32)
    values, ranks = _logprobs(result, targets).tolist(), _ranks(result, targets).tolist()
    entropy = (np.maximum(result.entropy, 0.0) / np.log(2.0)).tolist()
    best = _best(result, top) if top else [()] * len(ids)
    for i, (token, value, rank, uncertainty, likeliest) in enumerate(zip(ids, values, ranks, entropy, best, strict=True)):
        yield Scored(position + i, token, value, rank, uncertainty, likeliest)


def _logprobs(result: Result, targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """[R] the target tokens' logarithms, as `Distribution.logprob` computes them."""
    found: npt.NDArray[np.float64] = result.logits[np.arange(len(targets)), targets].astype(np.float64) - result.logsumexp
    return found


def _ranks(result: Result, targets: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """[R] 1 for the likeliest. Nearly all targets are among the largest logits, which the step has put in order; only for the others
    a row of the vocabulary is looked through."""
    found = result.top_ids == targets[:, None]
    ranks: npt.NDArray[np.int64] = found.argmax(1) + 1
    for row in np.flatnonzero(~found.any(1)):
        logits, target = result.logits[row], targets[row]
        value = logits[target]
        ranks[row] = 1 + np.count_nonzero(logits > value) + np.count_nonzero(logits[:target] == value)
    return ranks


def _best(result: Result, top: int) -> list[tuple[tuple[int, float], ...]]:
    """(id, logprob) of each row's likeliest tokens."""
    ids, values = result.top_ids, result.top_logits
    if top > ids.shape[1]:
        ids = np.argsort(-result.logits, axis=1, kind="stable").astype(np.int32)[:, :top]
        values = np.take_along_axis(result.logits, ids, 1)
    logprobs = values[:, :top].astype(np.float64) - result.logsumexp[:, None]
    return [tuple(zip(*row, strict=True)) for row in zip(ids[:, :top].tolist(), logprobs.tolist(), strict=True)]
