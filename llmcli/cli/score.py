"""`llm score [TEXT]`: how likely each token of a given text is, and the text as a whole."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from llmcli.cli import bars, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.heat import Column, Painter, Rows, legend, surprise
from llmcli.cli.lines import Lines
from llmcli.cli.options import OUTPUT, TEXT, Common, Model, Output, count, option
from llmcli.cli.progress import Report, progress
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.tokens import Tokens, read_ids
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.cli.page import TextPage
    from llmcli.engine import Engine
    from llmcli.scoring import Scored, Totals
    from llmcli.text.tokenizer import Tokenizer

READING = "How it is read"

ABOUT = """
Shows how likely a model finds each token of a given text, and the text as a whole: perplexity and bits per byte. Nothing is drawn. The
text is taken as it is, also for a chat model; a text that is longer than the context is scored in windows. llm next shows what else
could have stood at a place.
"""

EXAMPLE = """
llm score "The cat sat on the moon."          # coloured by surprise on a terminal
llm score "The cat sat on the moon." --table
llm score -f essay.txt --json > tokens.jsonl
llm score -f essay.txt --html essay.html      # a page: point at a token
llm run "The cat" --json | llm score --ids    # the same numbers again
"""

LONG = 4096
"""Tokens of a text that is worth a progress bar."""
LAYOUT = (
    Column("position", 8, need=2),
    Column("token", 18, left=True),
    Column("id", 7, need=3),
    Column("probability", 11),
    Column("bits", 6),
    Column("rank", 6, need=1),
    Column("favourite", 28, left=True, need=4),
)


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Output, Model, Common):
    ids: Annotated[bool, option("--ids", section=TEXT, help="TEXT is token ids, or what llm run --json says")] = False
    window: Annotated[
        int | None, option("--window", section=READING, metavar="N", parser=count(2, 2**24), help="tokens read at once (the context)")
    ] = None
    stride: Annotated[
        int | None,
        option("--stride", section=READING, metavar="N", parser=count(1, 2**24), help="tokens between windows (half of --window)"),
    ] = None
    table: Annotated[bool, option("--table", section=OUTPUT, help="a row a token, also on a terminal")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="a line of JSON a token, then a summary")] = False
    k: Annotated[int, option("-k", section=OUTPUT, metavar="K", parser=count(0, 10_000), help="the K likeliest at each place (1)")] = 1
    html: Annotated[
        Path | None, option("--html", section=OUTPUT, metavar="FILE", help="a page for a browser as well; without a table, the totals here")
    ] = None


def execute(options: Options, console: Console) -> int:
    if options.json and options.table:
        raise UsageError("--json and --table exclude each other", todo="Use one of them")
    if options.ids and (options.chat or options.special):
        raise UsageError("--ids", "--chat and --special are for text", "Leave them out")
    text = stdin.gather(options, console)
    ids = read_ids(text) if options.ids else None
    engine = options.load(console)
    with contextlib.closing(engine):
        from llmcli import scoring
        from llmcli.text.tokenizer import Stream

        tokenizer = engine.tokenizer
        if ids is None:
            ids = options.encoder(engine.name, tokenizer, engine.template if options.chat else None)(text)
        window, stride = scoring.windows(engine, options.window, options.stride)
        if len(ids) > window:
            console.note(f"the text is read in windows of {window:,} tokens that overlap by {window - stride:,}")
        stream, totals = Stream(tokenizer), scoring.Totals()
        with (
            open_answer(options.output) as answer,
            _page(options, engine) as page,
            _progress(options, console, len(ids)) as report,
        ):
            writers = [_writer(options, console, answer, tokenizer), *page]
            for token in scoring.score(engine, ids, max(writer.top for writer in writers), window, stride):
                data, piece = stream.feed_bytes(token.id)
                totals.add(token, len(data))
                for writer in writers:
                    writer.token(token, piece)
                report("scoring", token.position + 1, len(ids))
            rest, summary = stream.finish(), _summary(engine, totals, window, stride)
            for writer in writers:
                writer.end(rest, summary)
    return 0


@contextlib.contextmanager
def _progress(options: Options, console: Console, tokens: int) -> Iterator[Report]:
    """A bar for long texts, unless the answer itself is seen growing."""
    if tokens <= LONG or (options.output is None and is_terminal(sys.stdout)):
        yield lambda what, done, total: None
        return
    with progress(console) as report:
        yield lambda what, done, total: None if done % 256 and done != total else report(what, done, total)


@contextlib.contextmanager
def _page(options: Options, engine: Engine) -> Iterator[list[Writer]]:
    """The page that --html asks for, or none."""
    if options.html is None:
        yield []
        return
    from llmcli.cli import page

    with page.opened(options.html, f"llm score, {engine.name}", page.SCORE, engine.tokenizer) as found:
        yield [PageWriter(found, max(options.k, page.TOP))]


class Writer(Protocol):
    top: int
    """How many of the likeliest tokens it wants to know; it may be told more."""

    def token(self, token: Scored, piece: str) -> None:
        """piece: the text that this token completes."""

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        """rest: text that never became complete."""


def _writer(options: Options, console: Console, answer: Answer, tokenizer: Tokenizer) -> Writer:
    if options.json:
        return JsonLines(answer, tokenizer, options.k)
    if options.html is not None and not options.table:
        return TotalsLine(answer)
    if options.table or options.output is not None or not console.colored(sys.stdout):
        terminal = options.output is None and is_terminal(sys.stdout)
        return Table(answer, tokenizer, options.k, shutil.get_terminal_size().columns if terminal else 0)
    return Heat(answer, tokenizer)


class Heat:
    """The text, coloured by surprise, with a legend."""

    top = 0

    def __init__(self, answer: Answer, tokenizer: Tokenizer) -> None:
        self._answer, self._tokenizer, self._painter, self._bits = answer, tokenizer, Painter(), 0.0

    def token(self, token: Scored, piece: str) -> None:
        if token.rank:  # a character of several tokens is as surprising as the most surprising of them
            self._bits = max(self._bits, token.bits)
        if token.id in self._tokenizer.control:
            self._answer.write_styled(self._painter.paint(self._tokenizer.token_text(token.id), surprise(self._bits) or bars.DIM))
        elif piece:
            self._answer.write_styled(self._painter.paint(piece, surprise(self._bits)))
        else:
            return
        self._bits = 0.0

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        self._answer.write_styled(
            self._painter.paint(rest, surprise(self._bits)) + self._painter.finish() + legend() + totals_line(summary)
        )


class TotalsLine:
    """The last line alone, for texts that are looked at elsewhere."""

    top = 0

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def token(self, token: Scored, piece: str) -> None:
        """Nothing of a single one."""

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        self._answer.write_styled(totals_line(summary))


class PageWriter:
    """A page for a browser."""

    def __init__(self, page: TextPage, top: int) -> None:
        self._page, self.top = page, top
        self.token = page.scored

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        self._page.end(rest, [totals_line(summary).rstrip()])


class Table:
    """A row a token."""

    def __init__(self, answer: Answer, tokenizer: Tokenizer, top: int, columns: int) -> None:
        self.top, self._lines, self._tokenizer, self._rows = top, Lines(answer.write_styled), tokenizer, Rows(LAYOUT, columns)
        self._name = functools.lru_cache(maxsize=None)(self._find_name)  # as many as the vocabulary has

    def token(self, token: Scored, piece: str) -> None:
        if token.position == 0:  # not before: a text may turn out to be none
            self._lines.add(self._rows.header())
        numbers = ["", "", ""]
        if token.rank:
            numbers = [bars.percent(math.exp(token.logprob)), f"{token.bits:.2f}", f"{token.rank}"]
        others = "  ".join(f"{self._name(number)} {bars.percent(math.exp(value))}" for number, value in token.top[: self.top])
        cells = [str(token.position), self._name(token.id), str(token.id), *numbers, others]
        self._lines.add(self._rows.row(cells))

    def _find_name(self, number: int) -> str:
        return bars.visible(self._tokenizer.token_text(number), self._tokenizer.token_bytes(number))

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        self._lines.add(totals_line(summary))
        self._lines.flush()


class JsonLines:
    """A record a token, then the summary (docs/json.md)."""

    def __init__(self, answer: Answer, tokenizer: Tokenizer, top: int) -> None:
        self.top, self._lines, self._tokenizer = top, Lines(answer.write), tokenizer
        self._named = functools.lru_cache(maxsize=None)(self._find_named)

    def token(self, token: Scored, piece: str) -> None:
        record = {"position": token.position, **self._named(token.id)}
        if token.rank:
            record |= {"logprob": token.logprob, "rank": token.rank, "surprise_bits": token.bits, "entropy_bits": token.entropy_bits}
        else:
            record |= dict.fromkeys(("logprob", "rank", "surprise_bits", "entropy_bits"))
        if self.top:
            unknown = {"final_prob": None, "removed_by": None}  # nothing is drawn here
            record["top"] = [{**self._named(number), "logprob": value, **unknown} for number, value in token.top[: self.top]]
        self._lines.add(to_line(record))

    def _find_named(self, number: int) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(number)
        return {"id": number, "text": data.decode("utf-8", "replace"), "bytes": data.hex()}

    def end(self, rest: str, summary: dict[str, Any]) -> None:
        self._lines.add(to_line({"type": "summary", "schema": SCHEMA, **summary}))
        self._lines.flush()


def _summary(engine: Engine, totals: Totals, window: int, stride: int) -> dict[str, Any]:
    return {
        "model": engine.name,
        "tokens": totals.tokens,
        "scored_tokens": totals.scored,
        "scored_bytes": totals.bytes,
        "logprob": totals.logprob,
        "perplexity": totals.perplexity,
        "bits_per_byte": totals.bits_per_byte,
        "window": window,
        "stride": stride,
    }


def totals_line(summary: dict[str, Any]) -> str:
    """The last line for people."""
    if not summary["scored_tokens"]:
        return f"1 token, which follows nothing: nothing is scored, {summary['model']}\n"
    numbers = f"perplexity {summary['perplexity']:.4g}, {summary['bits_per_byte']:.4f} bits per byte"
    return f"{numbers}, {summary['scored_tokens']:,} of {summary['tokens']:,} tokens scored, {summary['model']}\n"
