"""How likely each of several given answers is: the probability of all its tokens, after a text that they share.

An answer's tokens are those of text and answer together, behind what they have in common with the text's own: tokenizers may cut the
end of the text in another way when something follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli import past as pasts
from llmcli.engine import Engine
from llmcli.errors import InputError, UsageError
from llmcli.past import Past, common
from llmcli.scoring import logprobs


@dataclass(frozen=True)
class Choice:
    """One answer."""

    text: str
    """As it was given."""
    ids: tuple[int, ...]
    """Its tokens."""
    logprob: float
    """Natural logarithm of the probability that exactly these tokens come next."""
    prob: float
    """Its share among all choices; they sum to 1."""
    prob_per_token: float
    """The geometric mean of its tokens' probabilities, which does not shrink with length; not normalised."""


def joined(text: str, answer: str, join: str | None = None) -> str:
    """The answer with what joins it to the text: `join` or, where that is None, a space if neither side has one."""
    if join is None:
        join = " " if text and answer and not text[-1].isspace() and not answer[0].isspace() else ""
    return join + answer


def choose(engine: Engine, ids: Sequence[int], answers: Sequence[tuple[str, Sequence[int]]], past: Past | None = None) -> list[Choice]:
    """The choices, in the order given. ids: the text's tokens; answers: (answer, tokens of text and answer together). The text is
    computed once. past: what may have computed some of it.

    Raises UsageError for less than one answer or an empty one, InputError for a text without tokens, ContextOverflow, NumericalError.
    """
    if past is not None:
        return _choose(past, ids, answers)
    with Past(engine) as own:
        return _choose(own, ids, answers)


def _choose(past: Past, ids: Sequence[int], answers: Sequence[tuple[str, Sequence[int]]]) -> list[Choice]:
    found: list[tuple[str, Sequence[int], list[float]]] = []
    for answer, whole in answers:
        first = common(ids, whole)
        if first == len(whole):
            raise UsageError(f"the choice {answer!r} has no token of its own", "it adds nothing to the text", "Leave it out")
        if first == 0:
            raise InputError("there is nothing before the choices", "the model needs at least one token", "Give it some text")
        pasts.check(past.engine, whole)
        found.append((answer, whole[first:], logprobs(past, whole, first)))
    if not found:
        raise UsageError("no choices", "there is nothing to compare", 'Give some, such as "Yes,No"')
    sums = [math.fsum(values) for _, _, values in found]
    weights = [math.exp(total - max(sums)) for total in sums]
    return [
        Choice(answer, tuple(own), total, weight / math.fsum(weights), math.exp(total / len(own)))
        for (answer, own, _), total, weight in zip(found, sums, weights, strict=True)
    ]
