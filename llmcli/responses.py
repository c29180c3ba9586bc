"""Several answers to one prompt, sampled together and ranked, as LaMDA chose its answers (Thoppilan et al. 2022).

    prompt -> one past -> forks, one an answer -> one step computes the next token of all -> scores -> the best first
The prompt is computed once, and a step reads the weights once for all answers. Answer number i draws with seed + i and is, to the bit,
the answer that this seed gives alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from llmcli import past as pasts
from llmcli.choices import choose
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, UsageError
from llmcli.generate import Continuation, Settings, Step
from llmcli.past import Past
from llmcli.text.template import Message
from llmcli.text.thinking import Prompt

Rank = Literal["likelihood", "normalised", "self"]
RANKS: tuple[Rank, ...] = ("likelihood", "normalised", "self")
MOST = 64
"""Answers at once."""
SEEDS = 2**64
YES, NO = "Yes", "No"


@dataclass(frozen=True)
class Response:
    """One answer, whole. Logarithms are natural, of the model's own probabilities, before filters and temperature."""

    seed: int
    """With which `generate` gives this answer too."""
    steps: tuple[Step, ...]
    criterion_prob: float | None = None
    """The model's probability of Yes, against No, when it is asked whether the answer meets the criterion; None where it was not
    asked, or the answer leaves no room for the question."""

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def finish(self) -> str | None:
        """As of the last `Step`."""
        return self.steps[-1].finish if self.steps else None

    @property
    def logprob(self) -> float:
        """Of all its tokens, the end of text included where that was drawn."""
        return math.fsum(step.logprob for step in self.steps)

    @property
    def logprob_per_token(self) -> float:
        return self.logprob / len(self.steps) if self.steps else math.nan

    def score(self, rank: Rank) -> float | None:
        """What it is ranked by; None: it comes last."""
        return {"likelihood": self.logprob, "normalised": self.logprob_per_token, "self": self.criterion_prob}[rank]


def rank_by(rank: Rank | None, criterion: str | None) -> Rank:
    """The ranking that is meant: without one 'self' where there is a criterion, else 'normalised'. Raises UsageError."""
    if rank is not None and rank not in RANKS:
        raise UsageError("rank", f"{rank!r} is none of {', '.join(RANKS)}", "Change it")
    if criterion is not None and not criterion.strip():
        raise UsageError("the criterion is empty", todo='Say what an answer should be, such as "It is friendly"')
    if rank == "self" and criterion is None:
        raise UsageError("ranking by the model itself", "it has no criterion", "Add one (--criterion TEXT)")
    if rank not in (None, "self") and criterion is not None:
        raise UsageError("a criterion", f"it has no effect on the ranking {rank!r}", "Use the ranking 'self', or leave it out")
    return rank or ("normalised" if criterion is None else "self")


def best(
    engine: Engine,
    prompt: Prompt,
    settings: Settings,
    count: int,
    *,
    rank: Rank | None = None,
    criterion: str | None = None,
    messages: Sequence[Message] | None = None,
    probs: int = 0,
    past: Past | None = None,
    heard: Callable[[Step], None] = lambda step: None,
) -> list[Response]:
    """`count` answers to a prompt, the best first, of equal ones the one with the earlier seed; those without a score last.

    messages: the conversation that they answer; None: they continue a text. heard: gets every step as it is computed. The others as for
    `rank_by` and `generate`. The cache needs room for count + 1 texts.
    Raises UsageError (see `rank_by`), OutOfMemory where the cache has no room for so many texts, TemplateError, and as `generate` does.
    """
    rank = rank_by(rank, criterion)
    if past is None:
        with Past(engine) as own:
            return best(
                engine,
                prompt,
                settings,
                count,
                rank=rank,
                criterion=criterion,
                messages=messages,
                probs=probs,
                past=own,
                heard=heard,
            )
    steps: list[list[Step]] = [[] for _ in range(count)]
    for number, step in sample(engine, past, prompt.ids, settings, count, probs, prompt.shown):
        steps[number].append(step)
        heard(step)
    found = [Response((settings.seed + number) % SEEDS, tuple(own_steps)) for number, own_steps in enumerate(steps)]
    if criterion is not None:
        found = [dataclasses.replace(one, criterion_prob=_meets(engine, past, prompt, messages, criterion, one)) for one in found]
    return sorted(found, key=lambda one: _worth(one.score(rank)), reverse=True)


def sample(
    engine: Engine, past: Past, ids: Sequence[int], settings: Settings, count: int, probs: int = 0, shown: Set[int] = frozenset()
) -> Iterator[tuple[int, Step]]:
    """The steps of `count` answers to the tokens `ids`, as (number of the answer, step), in the order in which they are computed. past:
    what may have computed some of `ids`, and holds them afterwards. Raises as `best` does."""
    if settings.max_tokens == 0:
        return
    seeds = [(settings.seed + number) % SEEDS for number in range(count)]
    texts = [Continuation(engine, ids, dataclasses.replace(settings, seed=seed), probs, shown) for seed in seeds]
    distributions = [past.read(ids)] * count
    open = {number: past.fork() for number in range(count)}
    try:
        while open:
            for number, distribution in zip(list(open), distributions, strict=True):
                step = texts[number].draw(distribution)
                if step.finish is not None:
                    open.pop(number).close()
                yield number, step
            if open:
                distributions = pasts.step(list(open.values()), [texts[number].ids[-1] for number in open])
    finally:
        for fork in open.values():
            fork.close()


def _worth(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


def _meets(
    engine: Engine, past: Past, prompt: Prompt, messages: Sequence[Message] | None, criterion: str, response: Response
) -> float | None:
    encode = engine.tokenizer.encode
    if messages is None:
        question = f"\n\nQuestion: Does this text meet the criterion: {criterion}\nAnswer:"
        before = [*prompt.ids, *_own(engine, prompt, response)]
        asked, yes, no = ([*before, *encode(question + word, bos=False)] for word in ("", f" {YES}", f" {NO}"))
    else:
        question = f"Does your answer meet this criterion: {criterion}\nReply with {YES} or {NO} only."
        answer: Message = {"role": "assistant", "content": _answer(prompt, response)}
        asked = engine.prompt([*messages, answer, {"role": "user", "content": question}], "off").ids
        yes, no = ([*asked, *encode(word, bos=False)] for word in (YES, NO))
    try:
        return choose(engine, asked, [(YES, yes), (NO, no)], past)[0].prob
    except ContextOverflow:
        return None


def _own(engine: Engine, prompt: Prompt, response: Response) -> list[int]:
    """The answer's tokens, without its end and without those of a stop string."""
    ids = [step.id for step in response.steps if step.id is not None and step.id not in engine.end_ids]
    if response.finish == "stop":
        while ids and len(engine.tokenizer.decode(ids, prompt.ids)) > len(response.text):
            ids.pop()
    return ids


def _answer(prompt: Prompt, response: Response) -> str:
    """Its text without thoughts."""
    splitter = prompt.splitter()
    pieces = splitter.feed(response.text) + splitter.finish()
    return "".join(text for part, text in pieces if part == "answer")
