"""`llm run [PROMPT]`: base models continue the text, models with a chat template answer it."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from llmcli.cli import bars, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, Sampling, Text, count, option, ranged
from llmcli.cli.render import JsonLinesWriter, JsonWriter, TextWriter, Thoughts
from llmcli.cli.stats import Stats
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.generate import Settings, Step
    from llmcli.text.thinking import Prompt


ANSWER = "The answer"

ABOUT = """
Continues a text (base models) or answers it (models with a chat template). The text is put together from -f, standard input and
the argument, in this order. The answer goes to standard output as it is made, everything else to standard error, so that the
command fits into pipes.

The same seed, text and version give the same answer, whatever the number of threads. --json and --jsonl give every token with its
probability; llm next shows a single distribution.
"""

EXAMPLE = """
llm run "Once upon a time" -n 100
llm run -m NAME -s "One line." "Why is the sky blue?"
cat notes.txt | llm run "In short:"           # the pipe, then the argument
llm run -f story.txt -n 50 -o more.txt        # from a file into a file
llm run "The cat" --seed 7 --temp 0.7 --stop "." --stats
llm run "The cat" --temp 0 -n 5 --jsonl --probs 3
"""


@dataclass(frozen=True, kw_only=True)
class Options(Text, Sampling, Output, Model, Common):
    max_tokens: Annotated[
        int | None,
        option(
            "-n",
            "--max-tokens",
            "--predict",
            section=ANSWER,
            metavar="N",
            parser=ranged("max_tokens"),
            help="at most N tokens (to the end)",
        ),
    ] = None
    stop: Annotated[list[str] | None, option("--stop", section=ANSWER, metavar="TEXT", help="end before this text (repeatable)")] = None
    seed: Annotated[
        int | None,
        option("--seed", section=ANSWER, metavar="N", parser=ranged("seed"), help="the same seed, the same text (a new one)"),
    ] = None
    system: Annotated[str | None, option("-s", "--system", section=ANSWER, metavar="TEXT", help="instructions for a chat model")] = None
    think: Annotated[
        Literal["auto", "off", "show"],
        option("--think", section=ANSWER, metavar="HOW", help="a model's thoughts: auto (not in a pipe), off or show"),
    ] = "auto"
    raw: Annotated[bool, option("--raw", section=ANSWER, help="no chat template: continue the text")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="one JSON object at the end")] = False
    jsonl: Annotated[bool, option("--jsonl", section=OUTPUT, help="a line of JSON a token, then a summary")] = False
    probs: Annotated[
        int, option("--probs", section=OUTPUT, metavar="K", parser=count(0, 10_000), help="the K likeliest tokens at each place")
    ] = 0
    no_stream: Annotated[bool, option("--no-stream", section=OUTPUT, help="nothing until the text is complete")] = False
    stats: Annotated[bool, option("--stats", section=OUTPUT, help="times, tokens a second and memory, on standard error")] = False

    @property
    def plain(self) -> bool:
        """Whether the answer is its text alone."""
        return not (self.json or self.jsonl)


def execute(options: Options, console: Console) -> int:
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other", todo="Use one of them")
    prompt = stdin.gather(options, console)
    engine = options.load(console, chat=not options.raw)
    with contextlib.closing(engine):
        from llmcli.generate import settings_for

        tokens = encode(engine, options, prompt)
        seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
        more = {"max_tokens": options.max_tokens, "seed": seed, "stop": tuple(options.stop or ())}
        settings = settings_for(engine, options.overrides() | more)
        with open_answer(options.output) as answer:
            _show_prompt(options, console, prompt, engine)
            _answer(engine, tokens, settings, options, answer, console)
    return 0


def encode(engine: Engine, options: Options, prompt: str) -> Prompt:
    """The prompt's tokens. Raises UsageError for a system text that nothing would read, TemplateError."""
    if options.raw or engine.template is None:
        if options.system is not None:
            why = "--raw leaves the template out" if options.raw else f"{engine.name} has no chat template"
            raise UsageError("--system has no effect", why, "Put the text before the prompt")
        from llmcli.text.thinking import Prompt

        return Prompt(engine.tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return engine.prompt(messages, options.think)


def _answer(engine: Engine, prompt: Prompt, settings: Settings, options: Options, answer: Answer, console: Console) -> None:
    from llmcli.generate import generate

    if options.json:
        writer: TextWriter | JsonWriter | JsonLinesWriter = JsonWriter(answer)
    elif options.jsonl:
        writer = JsonLinesWriter(answer)
    else:
        writer = TextWriter(answer, not options.no_stream, _show_thoughts(options, answer, console))
    stats, splitter = Stats(engine, len(prompt.ids)), prompt.splitter()
    listed: list[Step] = []
    try:
        for step in generate(engine, prompt.ids, settings, options.probs, shown=prompt.shown):
            part = splitter.part
            pieces = splitter.feed(step.text) + (splitter.finish() if step.finish else [])
            stats.count(step, pieces)
            writer.step(step, pieces, splitter.part if part == "answer" else part)
            if options.probs and step.id is not None and options.plain:
                listed.append(step)
    except BaseException:
        with contextlib.suppress(OSError):
            writer.stop()
        raise
    writer.end(stats.summary(settings) | {"prompt_ids": prompt.ids})
    for step in listed:
        console.say(_alternatives(step))
    if splitter.thinking:
        console.note("the text ends in the model's thoughts, before an answer (-n N gives it more room, --think off no thoughts)")
    if stats.finish == "length" and stats.generated != settings.max_tokens:
        console.note(f"the text ends here because the context of {engine.context:,} tokens is full (-c N makes it larger)")
    if options.stats:
        console.say(stats.lines(settings))


def _show_thoughts(options: Options, answer: Answer, console: Console) -> Thoughts:
    """On a terminal dim; where no colours are wanted, or in a pipe, between tags."""
    if answer.terminal and console.colored(sys.stdout):
        return "dim"
    return "tagged" if answer.terminal or options.think == "show" else "hidden"


def _alternatives(step: Step) -> str:
    """A line of --probs: the token, its probability, and what else was likely there."""
    others = "  ".join(f"{bars.visible(c.text, c.bytes)} {bars.percent(c.prob)}" for c in step.top)
    token = bars.visible(step.bytes.decode("utf-8", "replace"), step.bytes)
    return f"{step.position:>6}  {token:<16}{bars.percent(math.exp(step.logprob)):>8}  | {others}"


def _show_prompt(options: Options, console: Console, prompt: str, engine: Engine) -> None:
    """On a terminal a continuation reads better behind the words it continues; they go to standard error."""
    plain = options.raw or engine.template is None
    streamed = options.plain and not (options.output or console.quiet or options.no_stream)
    if plain and streamed and is_terminal(sys.stdout) and is_terminal(sys.stderr):
        Answer(sys.stderr.buffer, terminal=True).write(prompt)
