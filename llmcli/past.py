"""A text in the KV cache with the tokens that fill it, so that what has been computed is not computed again.

Chats, scores, trees and candidates are all this: a past that is read on, cut back, forked. Results never depend on what was
reused (docs/architecture.md, one order of arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmcli.backends.backend import Batch, Result
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError, NumericalError
from llmcli.interrupt import stopping
from llmcli.kv import Sequence as CacheSequence
from llmcli.sampling.distribution import Distribution


class Past:
    """Tokens `ids`, all of them computed. Close it to give its place in the cache back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self.computed = 0
        """Tokens that the last `read` had to compute; the others were here."""
        self._sequence: CacheSequence = engine.cache.sequence()

    def read(self, ids: Sequence[int]) -> Distribution:
        """Makes these the past's tokens, computing those behind the longest common beginning, at least the last one.

        Returns the distribution of the token after them. Ctrl-C ends it early; the past is then as long as what was kept.
        Raises InputError when there are none or one is unknown, ContextOverflow, NumericalError.
        """
        check(self.engine, ids)
        self.cut(min(common(self.ids, ids), len(ids) - 1))
        return self.append(ids[len(self.ids) :])

    def append(self, ids: Sequence[int]) -> Distribution:
        """Computes one or more tokens behind those that are here; the distribution after the last. Raises as `read` does."""
        return distribution(self.compute(ids))

    def compute(self, ids: Sequence[int], outputs: str = "last") -> Result:
        """The same with the result itself, which the next step overwrites. outputs: rows with logits: 'last', 'all' or 'none'."""
        with stopping(self.engine.stop):
            result = self.engine.run(Batch.of(self._sequence, np.array(ids, np.int32), outputs))
        self.ids += ids
        self.computed = len(ids)
        return result

    def keys(self, layer: int) -> npt.NDArray[np.float32]:
        """A copy of what a layer's attention compares queries with: [kv_heads, len(ids), head size]."""
        return self._sequence.keys(layer)

    def cut(self, length: int) -> None:
        """Forgets every token from `length` on."""
        self._sequence.truncate(length)
        del self.ids[length:]

    def fork(self) -> Past:
        """Another past with the same tokens; the cache's full blocks are shared."""
        other = Past.__new__(Past)
        other.engine, other.ids, other.computed, other._sequence = self.engine, list(self.ids), 0, self._sequence.fork()
        return other

    def close(self) -> None:
        self._sequence.close()
        self.ids = []

    def __enter__(self) -> Past:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def step(pasts: Sequence[Past], tokens: Sequence[int]) -> list[Distribution]:
    """The next token of each of several pasts of one engine, computed together: the weights are read once for all of them.

    Returns the distributions of the tokens after them. Raises as `append` does; every past is then as it was."""
    engine = pasts[0].engine
    with stopping(engine.stop):
        result = engine.run(Batch.together([past._sequence for past in pasts], np.array(tokens, np.int32)))
    for past, token in zip(pasts, tokens, strict=True):
        past.ids.append(token)
        past.computed = 1
    return [distribution(result, row) for row in range(len(pasts))]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def check(engine: Engine, ids: Sequence[int]) -> None:
    """Raises InputError when there are no tokens, ContextOverflow when there are too many."""
    if not ids:
        raise InputError("the prompt is empty", "the model needs at least one token", "Give it some text")
    if len(ids) > engine.context:
        raise ContextOverflow("the prompt does not fit", f"{len(ids):,} tokens, the context has room for {engine.context:,}")


def check_known(engine: Engine, ids: Sequence[int]) -> None:
    """Raises InputError for a token that the model does not have. A step checks its own tokens; this is for what looks ahead."""
    vocab = engine.plan.vocab
    for number in ids:
        if not 0 <= number < vocab:
            raise InputError(f"the model does not know token {number}", f"it knows those from 0 to {vocab - 1:,}")


def distribution(result: Result, row: int = -1) -> Distribution:
    """A copy of one row: the arrays of a result are overwritten by the next step. Raises NumericalError on NaN."""
    logsumexp, entropy = float(result.logsumexp[row]), float(result.entropy[row])
    if not math.isfinite(logsumexp):
        raise NumericalError("the model's output is not a number", "NaN or infinity in the logits")
    return Distribution(result.logits[row].copy(), result.top_ids[row].copy(), logsumexp, max(0.0, entropy))
