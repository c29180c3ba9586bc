"""`llm diff -m A -m B [TEXT]`: how far the second model's distributions are from the first one's, and where most."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmcli.cli import stdin
from llmcli.cli.console import Console, open_answer
from llmcli.cli.differences import JsonLines, Names, PageWriter, Tables, Writer
from llmcli.cli.options import MODEL, OUTPUT, Common, Machine, Output, count, option
from llmcli.cli.progress import progress
from llmcli.cli.tokens import Tokens
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.compare import Differences
    from llmcli.engine import Engine

READING = "How it is read"

ABOUT = """
Shows how far the second model's distributions of the next token are from the first one's, on the same text: KL divergence in nats
and how often the likeliest token is the same, with 95% intervals, and the places of most disagreement. The models may be two
quantizations of one, or any two that share a tokenizer.

Both read the text side by side, so that no file of logits is needed. llm eval measures a single model.
"""

EXAMPLE = """
llm diff -m NAME:int8 -m NAME:int4 -f story.txt
llm diff -m NAME:none -m NAME:int8 -f story.txt --limit 10000 --json
llm diff -m A -m B "The cat sat on the moon." --table
llm diff -m A -m B -f story.txt --html diff.html
"""

BEFORE = 40
"""Characters that are shown of the text before a token."""


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Output, Machine, Common):
    model: Annotated[
        list[str] | None, option("-m", "--model", section=MODEL, metavar="NAME", help="twice: the model to compare with, then the other")
    ] = None
    window: Annotated[
        int | None,
        option("--window", section=READING, metavar="N", parser=count(2, 2**24), help="tokens read at once (the smaller context)"),
    ] = None
    stride: Annotated[
        int | None,
        option("--stride", section=READING, metavar="N", parser=count(1, 2**24), help="tokens between windows (half of --window)"),
    ] = None
    limit: Annotated[
        int | None, option("--limit", section=READING, metavar="N", parser=count(1, 2**24), help="only the first N tokens")
    ] = None
    worst: Annotated[
        int, option("--worst", section=OUTPUT, metavar="N", parser=count(0, 10_000), help="how many places of most disagreement (10)")
    ] = 10
    table: Annotated[bool, option("--table", section=OUTPUT, help="a row for every token")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="a line of JSON a token, then a summary")] = False
    k: Annotated[
        int, option("-k", section=OUTPUT, metavar="K", parser=count(1, 10_000), help="the K likeliest of each model in rows and JSON (1)")
    ] = 1
    html: Annotated[Path | None, option("--html", section=OUTPUT, metavar="FILE", help="a page for a browser as well")] = None


def execute(options: Options, console: Console) -> int:
    if options.model is None or len(options.model) != 2:
        raise UsageError("llm diff compares two models", f"-m was given {len(options.model or ())} times", "Give it twice: -m A -m B")
    if options.json and options.table:
        raise UsageError("--json and --table exclude each other", todo="Use one of them")
    text = stdin.gather(options, console)
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(contextlib.closing(options.open(name, console))) for name in options.model)
        from llmcli import compare, scoring
        from llmcli.text.tokenizer import Stream

        compare.check(a, b)
        ids, others = (options.encoder(engine.name, engine.tokenizer, engine.template)(text) for engine in (a, b))
        compare.check_ids(a, b, ids, others)
        ids = ids[: options.limit]
        window, stride = scoring.windows(min(a, b, key=lambda engine: engine.context), options.window, options.stride)
        answer, report = stack.enter_context(open_answer(options.output)), stack.enter_context(progress(console))
        names = Names(a.tokenizer, options.k)
        writers: list[Writer] = [JsonLines(answer, names) if options.json else Tables(answer, names, options.table, options.output is None)]
        if options.html is not None:
            from llmcli.cli import page

            words = page.of_two(a.name, b.name)
            file = stack.enter_context(page.opened(options.html, f"llm diff, {a.name} and {b.name}", words, a.tokenizer))
            writers.append(PageWriter(file))
        most = max([options.k, *([page.TOP] if options.html else [])])
        differences, stream, before = compare.Differences(options.worst), Stream(a.tokenizer), ""
        for token in compare.compare(a, b, ids, most, window, stride):
            data, piece = stream.feed_bytes(token.a.id)
            differences.add(token, len(data), before)
            before = (before + piece)[-BEFORE:]
            for writer in writers:
                writer.token(token, piece)
            if token.a.position % 256 == 255 or token.a.position + 1 == len(ids):
                report("comparing", token.a.position + 1, len(ids))
        rest, summary = stream.finish(), _summary(a, b, differences, window, stride)
        for writer in writers:
            writer.end(rest, differences, summary)
    return 0


def _summary(a: Engine, b: Engine, found: Differences, window: int, stride: int) -> dict[str, Any]:
    mean, half = found.kl.mean, found.kl.half
    return {
        "models": [a.name, b.name],
        "tokens": found.a.tokens,
        "compared_tokens": found.kl.count,
        "kl": mean,
        "kl_interval": [mean - half if math.isnan(half) else max(0.0, mean - half), mean + half],
        "kl_median": found.quantile(0.5),
        "kl_999": found.quantile(0.999),
        "kl_largest": found.quantile(1.0),
        "same_top": found.same.mean,
        "same_top_interval": found.same.share(),
        "perplexity": [found.a.perplexity, found.b.perplexity],
        "bits_per_byte": [found.a.bits_per_byte, found.b.bits_per_byte],
        "window": window,
        "stride": stride,
    }
