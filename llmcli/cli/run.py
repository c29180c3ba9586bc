"""`llm run [PROMPT]`: base models continue the text, models with a chat template answer it."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from llmcli.cli import bars, options, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.render import JsonLinesWriter, JsonWriter, TextWriter
from llmcli.cli.stats import Stats
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.generate import Settings, Step


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_text(parser, "PROMPT", "the text to continue, or the question")
    group = parser.add_argument_group("the answer")
    group.add_argument(
        "-n", "--max-tokens", "--predict", metavar="N", type=options.count(0, 10**8), help="at most N tokens (default: to the end)"
    )
    group.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before this text (repeatable)")
    group.add_argument("--seed", metavar="N", type=options.count(0, 2**64 - 1), help="the same seed, the same text (default: a new one)")
    group.add_argument("-s", "--system", metavar="TEXT", help="instructions for a chat model")
    group.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    options.add_sampling(parser)
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object at the end")
    form.add_argument("--jsonl", action="store_true", help="a line of JSON a token, then a summary")
    output.add_argument("--probs", metavar="K", type=options.count(0, 10_000), default=0, help="the K likeliest tokens at each place")
    output.add_argument("--no-stream", dest="stream", action="store_false", help="nothing until the text is complete")
    output.add_argument("--stats", action="store_true", help="times, tokens a second and memory, on standard error")
    options.add_output(output)
    options.add_model(parser)


def execute(arguments: Namespace, console: Console) -> int:
    prompt = stdin.gather(arguments, console)
    engine = options.load(arguments, console)
    with contextlib.closing(engine):
        from llmcli.generate import settings_for

        ids = encode(engine, arguments, prompt)
        seed = int.from_bytes(os.urandom(4)) if arguments.seed is None else arguments.seed
        more = {"max_tokens": arguments.max_tokens, "seed": seed, "stop": tuple(arguments.stop)}
        settings = settings_for(engine, options.sampling(arguments, engine) | more)
        with open_answer(arguments.output) as answer:
            _show_prompt(arguments, console, prompt, engine)
            _answer(engine, ids, settings, arguments, answer, console)
    return 0


def encode(engine: Engine, arguments: Namespace, prompt: str) -> list[int]:
    """The prompt's tokens. Raises UsageError for a system text that nothing would read."""
    if engine.template is None or arguments.raw:
        if arguments.system is not None:
            why = f"{engine.name} has no chat template" if engine.template is None else "--raw leaves the template out"
            raise UsageError("--system has no effect", why, "Put the text before the prompt")
        return engine.tokenizer.encode(prompt)
    from llmcli.text.template import encode_chat

    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return encode_chat(engine.tokenizer, engine.template, messages)


def _answer(engine: Engine, ids: list[int], settings: Settings, arguments: Namespace, answer: Answer, console: Console) -> None:
    from llmcli.generate import generate

    if arguments.json:
        writer: TextWriter | JsonWriter | JsonLinesWriter = JsonWriter(answer)
    elif arguments.jsonl:
        writer = JsonLinesWriter(answer)
    else:
        writer = TextWriter(answer, arguments.stream)
    stats = Stats(engine, len(ids))
    listed: list[Step] = []
    try:
        for step in generate(engine, ids, settings, arguments.probs):
            stats.count(step)
            writer.step(step)
            if arguments.probs and step.id is not None and not (arguments.json or arguments.jsonl):
                listed.append(step)
    except BaseException:
        with contextlib.suppress(OSError):
            writer.stop()
        raise
    writer.end(stats.summary(settings))
    for step in listed:
        console.say(_alternatives(step))
    if stats.finish == "length" and stats.generated != settings.max_tokens:
        console.note(f"the text ends here because the context of {engine.context:,} tokens is full (-c N makes it larger)")
    if arguments.stats:
        console.say(stats.lines(settings))


def _alternatives(step: Step) -> str:
    """A line of --probs: the token, its probability, and what else was likely there."""
    others = "  ".join(f"{bars.visible(c.text, c.bytes)} {bars.percent(c.prob)}" for c in step.top)
    token = bars.visible(step.bytes.decode("utf-8", "replace"), step.bytes)
    return f"{step.position:>6}  {token:<16}{bars.percent(math.exp(step.logprob)):>8}  | {others}"


def _show_prompt(arguments: Namespace, console: Console, prompt: str, engine: Engine) -> None:
    """On a terminal a continuation reads better behind the words it continues; they go to standard error."""
    plain = engine.template is None or arguments.raw
    text_only = not (arguments.json or arguments.jsonl or arguments.output or console.quiet) and arguments.stream
    if plain and text_only and is_terminal(sys.stdout) and is_terminal(sys.stderr):
        Answer(sys.stderr.buffer, terminal=True).write(prompt)
