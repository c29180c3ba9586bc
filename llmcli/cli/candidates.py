"""`llm run --candidates N`: several answers to one prompt, sampled together; the best is the answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmcli.cli.console import Answer, Console, is_terminal
from llmcli.cli.options import count, option
from llmcli.cli.progress import progress
from llmcli.cli.render import SCHEMA, TextWriter, Thoughts, to_line, token_records
from llmcli.cli.stats import Stats
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.generate import Settings, Step
    from llmcli.responses import Rank, Response
    from llmcli.text.template import Message
    from llmcli.text.thinking import Piece, Prompt

SEVERAL = "Several answers"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Of how many answers the best is taken, and which is the best."""

    candidates: Annotated[
        int | None,
        option("--candidates", section=SEVERAL, metavar="N", parser=count(1, 64), help="sample N answers together, print the best"),
    ] = None
    rank: Annotated[
        Literal["likelihood", "normalised", "self"] | None,
        option("--rank", section=SEVERAL, metavar="HOW", help="best by likelihood, normalised (default: per token), or self"),
    ] = None
    criterion: Annotated[
        str | None,
        option("--criterion", section=SEVERAL, metavar="TEXT", help="for self: what the model is asked of each answer"),
    ] = None
    all: Annotated[bool, option("--all", section=SEVERAL, help="print all answers, the best first, with their scores")] = False

    def check(self, streamed: bool) -> None:
        """Raises UsageError for options that go only with --candidates, or never with it."""
        if self.candidates is not None and streamed:
            raise UsageError("--jsonl and --html do not go with --candidates", todo="Use --json")
        given = {"--rank": self.rank, "--criterion": self.criterion, "--all": self.all or None}
        for name, value in given.items():
            if value is not None and self.candidates is None:
                raise UsageError(f"{name} has no effect", "there is one answer only", "Add --candidates N")
        if self.candidates is not None:
            from llmcli.responses import rank_by

            rank_by(self.rank, self.criterion)


@dataclass(frozen=True)
class Writing:
    """How the answers are written."""

    answer: Answer
    json: bool
    thoughts: Thoughts
    probs: int
    stats: bool


def respond(
    engine: Engine,
    prompt: Prompt,
    messages: Sequence[Message] | None,
    settings: Settings,
    options: Candidates,
    writing: Writing,
    console: Console,
) -> list[Step]:
    """Writes the best answer, or all of them, and returns the best one's steps. messages: the conversation; None: a continuation."""
    from llmcli import responses

    assert options.candidates is not None
    several = options.candidates
    rank, stats = responses.rank_by(options.rank, options.criterion), Stats(engine, len(prompt.ids))
    most = several * min(settings.max_tokens or engine.context, engine.context - len(prompt.ids) + 1)
    with progress(console) if is_terminal(sys.stderr) else contextlib.nullcontext() as report:

        def heard(step: Step) -> None:
            stats.count(step, [])
            if report and stats.generated % several == 0:
                report("tokens", stats.generated, most)

        found = responses.best(
            engine,
            prompt,
            settings,
            several,
            rank=rank,
            criterion=options.criterion,
            messages=messages,
            probs=writing.probs,
            heard=heard,
        )
    best = found[0]
    if writing.json:
        records = [_record(response, prompt, place, rank) for place, response in enumerate(found, 1)]
        names = ("text", "thoughts", "finish", "generated_tokens", "tokens")
        summary = stats.summary(settings.changed({"seed": best.seed})) | {"prompt_ids": prompt.ids, "rank_by": rank}
        writing.answer.write(to_line({"schema": SCHEMA, **summary, **{name: records[0][name] for name in names}, "candidates": records}))
    else:
        for place, response in enumerate(found if options.all else [best], 1):
            if options.all:
                writing.answer.write(("" if place == 1 else "\n") + _title(response, place))
            _write(response, prompt, writing)
    if rank == "self" and best.criterion_prob is None:
        console.note("no answer leaves room for the question about it (-n N makes answers shorter, -c N the context longer)")
    if writing.stats:
        console.say(stats.lines(settings))
        console.say(f"{'answers':<12}{len(found)}, seeds from {settings.seed}")
    return list(best.steps)


def _title(response: Response, place: int) -> str:
    """The line above an answer of --all."""
    judged = "" if response.criterion_prob is None else f", criterion {response.criterion_prob:.3f}"
    per_token = f"{response.logprob_per_token:.3f} a token"
    return f"--- {place}: log-probability {response.logprob:.2f}, {per_token}{judged}, seed {response.seed}\n"


def _parts(response: Response, prompt: Prompt) -> list[tuple[Step, list[Piece], str]]:
    """Each step with the pieces of text that it completes, and the part of the text that its token is of."""
    splitter = prompt.splitter()
    found: list[tuple[Step, list[Piece], str]] = []
    for step in response.steps:
        before = splitter.part
        pieces = splitter.feed(step.text) + (splitter.finish() if step.finish else [])
        found.append((step, pieces, splitter.part if before == "answer" else before))
    return found


def _write(response: Response, prompt: Prompt, writing: Writing) -> None:
    writer = TextWriter(writing.answer, True, writing.thoughts)
    for step, pieces, part in _parts(response, prompt):
        writer.step(step, pieces, part)
    writer.stop()


def _record(response: Response, prompt: Prompt, place: int, rank: Rank) -> dict[str, Any]:
    """An entry of `candidates` in docs/json.md."""
    parts = _parts(response, prompt)
    texts = {kind: "".join(text for _, pieces, _ in parts for part, text in pieces if part == kind) for kind in ("answer", "thought")}
    return {
        "rank": place,
        "score": response.score(rank),
        "logprob": response.logprob,
        "logprob_per_token": response.logprob_per_token,
        "criterion_prob": response.criterion_prob,
        "seed": response.seed,
        "text": texts["answer"],
        "thoughts": texts["thought"],
        "finish": response.finish,
        "generated_tokens": len(response.steps),
        "tokens": [record for step, _, part in parts for record in token_records(step, part)],
    }
