"""Questions with a known answer: a file of them, and what a model makes of each.

    lambada    a line {"context", "continuation"}: the last word of a passage (Paperno et al. 2016)
    hellaswag  a line {"query", "choices", "gold"}: how a story goes on, one of four (Zellers et al. 2019)
A question is a text and answers, which all share its tokens: they are computed once. To add a kind: a function from a line's
object to a Question, and its row in KINDS. It yields results and never prints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.choices import joined
from llmcli.engine import Engine
from llmcli.errors import InputError
from llmcli.past import Past, common
from llmcli.scoring import scored


@dataclass(frozen=True)
class Question:
    text: str
    answers: tuple[str, ...]
    """What may follow, with the space that joins it."""
    gold: int
    """Index of the right one."""


@dataclass(frozen=True)
class Answered:
    """What a model makes of a question."""

    right: bool
    """Several answers: the right one is the likeliest. A single one: each of its tokens is the likeliest at its place."""
    right_normalised: bool | None
    """The same by log-probability per character, which does not favour short answers; None for a single answer."""
    logprob: float
    """Natural logarithm of the right answer's probability, after the text."""
    cut: bool
    """Whether the beginning of the text did not fit into the context."""


def _lambada(record: dict[str, Any]) -> Question:
    text, word = record["context"], record["continuation"]
    return Question(text, (joined(text, word),), 0)


def _hellaswag(record: dict[str, Any]) -> Question:
    text, choices, gold = record["query"], record["choices"], record["gold"]
    if not isinstance(choices, list):
        raise ValueError("choices is no list")
    answers = tuple(joined(text, choice) for choice in choices)
    if type(gold) is not int or not 0 <= gold < len(answers) or len(answers) < 2:
        raise ValueError("gold is no index of choices")
    return Question(text, answers, gold)


KINDS: dict[str, Callable[[dict[str, Any]], Question]] = {"lambada": _lambada, "hellaswag": _hellaswag}


def questions(kind: str, text: str) -> list[Question]:
    """The questions of a file's text, a JSON object a line. Raises InputError with the number of a line that cannot be read, or
    when there are none."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                question = KINDS[kind](json.loads(line))
                if not (question.text.strip() and all(answer.strip() for answer in question.answers)):
                    raise ValueError("a text is empty")
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(f"line {number:,} is no question of {kind}", why, "docs/commands.md says what a line has") from error
            found.append(question)
    if not found:
        raise InputError("there are no questions", "the file is empty", "Choose another file")
    return found


def ask(engine: Engine, asked: Sequence[Question]) -> Iterator[Answered]:
    """A result for each question, in order. Raises InputError for an answer that does not fit into the context, NumericalError."""
    with Past(engine) as past:  # read on and cut back, so that answers share their question's tokens
        for question in asked:
            yield _answered(question, [_answer(past, question.text, answer) for answer in question.answers])


def _answered(question: Question, found: Sequence[tuple[float, bool, bool]]) -> Answered:
    gold = question.gold
    sums, cut = [logprob for logprob, _, _ in found], any(over for _, _, over in found)
    if len(found) == 1:
        return Answered(found[0][1], None, sums[0], cut)
    each = [total / len(answer.strip()) for total, answer in zip(sums, question.answers, strict=True)]
    return Answered(sums.index(max(sums)) == gold, each.index(max(each)) == gold, sums[gold], cut)


def _answer(past: Past, text: str, answer: str) -> tuple[float, bool, bool]:
    """(logprob, whether each token is the likeliest, whether the text was cut)."""
    tokenizer, context = past.engine.tokenizer, past.engine.context
    whole = tokenizer.encode(text + answer)
    first = max(1, common(tokenizer.encode(text), whole))
    over = max(0, len(whole) - context)
    if first - over < 1:
        raise InputError("an answer does not fit", f"{len(whole) - first:,} tokens, the context has room for {context:,}")
    tokens = list(scored(past, whole[over:], first - over))
    return math.fsum(token.logprob for token in tokens), all(token.rank == 1 for token in tokens), over > 0
