"""`llm run [PROMPT]`: base models continue the text, models with a chat template answer it. Without a prompt, on a terminal, a chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llmcli.cli import bars, candidates, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Answering, Common, Model, Output, Text, option
from llmcli.cli.render import JsonLinesWriter, JsonWriter, TextWriter, Thoughts, Writer
from llmcli.cli.stats import Stats
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.generate import Settings, Step
    from llmcli.text.template import Message
    from llmcli.text.thinking import Prompt


ABOUT = """
Continues a text (base models) or answers it (models with a chat template). The text is put together from -f, standard input and
the argument, in this order. The answer goes to standard output as it is made, everything else to standard error, so that the
command fits into pipes.

The same seed, text and version give the same answer, whatever the number of threads. --json and --jsonl give every token with its
probability; llm next shows a single distribution. --candidates samples several answers together and prints the best.

Without a prompt, on a terminal, it is llm chat.
"""

EXAMPLE = """
llm run "Once upon a time" -n 100
llm run -m NAME -s "One line." "Why is the sky blue?"
cat notes.txt | llm run "In short:"           # the pipe, then the argument
llm run -f story.txt -n 50 -o more.txt        # from a file into a file
llm run "The cat" --seed 7 --temp 0.7 --stop "." --stats
llm run "The cat" --temp 0 -n 5 --jsonl --probs 3
llm run "The cat" --probs 5 --html cat.html   # a page with the roads not taken
llm run "The cat" --candidates 8 -n 40 --all  # eight answers, the best first
"""

LISTED = 5
"""Alternatives at each place of a page, without --probs."""


@dataclass(frozen=True, kw_only=True)
class Options(Text, candidates.Candidates, Answering, Output, Model, Common):
    json: Annotated[bool, option("--json", section=OUTPUT, help="one JSON object at the end")] = False
    jsonl: Annotated[bool, option("--jsonl", section=OUTPUT, help="a line of JSON a token, then a summary")] = False
    no_stream: Annotated[bool, option("--no-stream", section=OUTPUT, help="nothing until the text is complete")] = False
    html: Annotated[
        Path | None, option("--html", section=OUTPUT, metavar="FILE", help="a page for a browser as well; lists 5 without --probs")
    ] = None

    @property
    def plain(self) -> bool:
        """Whether the answer is its text alone."""
        return not (self.json or self.jsonl)


def execute(options: Options, console: Console) -> int:
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other", todo="Use one of them")
    options.check(options.jsonl or options.html is not None)
    if (
        options.plain
        and not (options.output or options.no_stream or options.html or options.candidates)
        and stdin.nobody_wrote(options)
        and is_terminal(sys.stdout)
    ):
        from llmcli.cli import chat

        return chat.execute(chat.Options(**{name: getattr(options, name) for name in chat.SHARED}), console)
    prompt = stdin.gather(options, console)
    engine = options.load(console, chat=not options.raw, texts=1 + (options.candidates or 0))
    with contextlib.closing(engine):
        from llmcli.generate import settings_for

        tokens = encode(engine, options, prompt)
        settings = settings_for(engine, options.overrides())
        with open_answer(options.output) as answer:
            if options.candidates is not None:
                _best(engine, tokens, prompt, settings, options, answer, console)
                return 0
            with _page(options, engine, tokens) as page:
                _show_prompt(options, console, prompt, engine)
                _answer(engine, tokens, settings, options, [_writer(options, answer, console), *page], console)
    return 0


def encode(engine: Engine, options: Options, prompt: str) -> Prompt:
    """The prompt's tokens. Raises UsageError for a system text that nothing would read, TemplateError."""
    options.check_system(engine)
    if options.raw or engine.template is None:
        from llmcli.text.thinking import Prompt

        return Prompt(engine.tokenizer.encode(prompt))
    return engine.prompt(_messages(options, prompt), options.think)


def _messages(options: Options, prompt: str) -> list[Message]:
    system: list[Message] = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, {"role": "user", "content": prompt}]


def _writer(options: Options, answer: Answer, console: Console) -> Writer:
    if options.json:
        return JsonWriter(answer)
    if options.jsonl:
        return JsonLinesWriter(answer)
    return TextWriter(answer, not options.no_stream, show_thoughts(options, answer, console))


@contextlib.contextmanager
def _page(options: Options, engine: Engine, prompt: Prompt) -> Iterator[list[Writer]]:
    """The page that --html asks for, or none."""
    if options.html is None:
        yield []
        return
    from llmcli.cli import page

    with page.opened(options.html, f"llm run, {engine.name}", page.RUN, engine.tokenizer) as found:
        yield [page.RunWriter(found, engine.tokenizer, prompt.ids)]


def _answer(engine: Engine, prompt: Prompt, settings: Settings, options: Options, writers: list[Writer], console: Console) -> None:
    from llmcli.generate import generate

    stats, splitter = Stats(engine, len(prompt.ids)), prompt.splitter()
    listed: list[Step] = []
    try:
        for step in generate(engine, prompt.ids, settings, options.probs or (LISTED if options.html else 0), shown=prompt.shown):
            part = splitter.part
            pieces = splitter.feed(step.text) + (splitter.finish() if step.finish else [])
            stats.count(step, pieces)
            for writer in writers:
                writer.step(step, pieces, splitter.part if part == "answer" else part)
            if options.probs and step.id is not None and options.plain:
                listed.append(step)
    except BaseException:
        for writer in writers:
            with contextlib.suppress(OSError):
                writer.stop()
        raise
    for writer in writers:
        writer.end(stats.summary(settings) | {"prompt_ids": prompt.ids})
    for step in listed:
        console.say(bars.alternatives(step))
    if splitter.thinking:
        console.note("the text ends in the model's thoughts, before an answer (-n N gives it more room, --think off no thoughts)")
    if stats.finish == "length" and stats.generated != settings.max_tokens:
        console.note(f"the text ends here because the context of {engine.context:,} tokens is full (-c N makes it larger)")
    if options.stats:
        console.say(stats.lines(settings))


def _best(engine: Engine, tokens: Prompt, prompt: str, settings: Settings, options: Options, answer: Answer, console: Console) -> None:
    """The best of several answers."""
    messages = None if options.raw or engine.template is None else _messages(options, prompt)
    writing = candidates.Writing(answer, options.json, show_thoughts(options, answer, console), options.probs, options.stats)
    steps = candidates.respond(engine, tokens, messages, settings, options, writing, console)
    if options.probs and options.plain:
        for step in steps:
            console.say(bars.alternatives(step))


def show_thoughts(options: Answering, answer: Answer, console: Console) -> Thoughts:
    """On a terminal dim; where no colours are wanted, or in a pipe, between tags."""
    if answer.terminal and console.colored(sys.stdout):
        return "dim"
    return "tagged" if answer.terminal or options.think == "show" else "hidden"


def _show_prompt(options: Options, console: Console, prompt: str, engine: Engine) -> None:
    """On a terminal a continuation reads better behind the words it continues; they go to standard error."""
    plain = options.raw or engine.template is None
    streamed = options.plain and not (options.output or console.quiet or options.no_stream)
    if plain and streamed and is_terminal(sys.stdout) and is_terminal(sys.stderr):
        Answer(sys.stderr.buffer, terminal=True).write(prompt)
