"""`llm tokenize [TEXT]`: the pieces that a model sees instead of a text. No weights are read."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from llmcli.cli import bars, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.heat import TURNS, Column, Painter, Rows
from llmcli.cli.options import MODEL, OUTPUT, TEXT, Common, Output, option
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.tokens import Tokens, read_ids
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.text.tokenizer import Tokenizer

ABOUT = """
Shows the tokens that a model sees in a text: their ids, pieces and bytes. No weights are loaded. The text is taken as it is, with the
tokenizer's own rule for the beginning of a text, also for a chat model. llm score says how likely the tokens are.
"""

EXAMPLE = """
llm tokenize "The cat sat on the mat."
llm tokenize -f essay.txt -m NAME --json | jq .count
"""

LAYOUT = (Column("position", 8, need=1), Column("id", 7), Column("token", 24, left=True), Column("bytes", 36, left=True, need=2))


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Output, Common):
    decode: Annotated[bool, option("--decode", section=TEXT, help="TEXT is token ids: print their text")] = False
    model: Annotated[
        str | None, option("-m", "--model", section=MODEL, metavar="NAME", help="a name of llm list, or a path (LLMCLI_MODEL, else demo)")
    ] = None
    table: Annotated[bool, option("--table", section=OUTPUT, help="a row a token, also on a terminal")] = False
    count: Annotated[bool, option("--count", section=OUTPUT, help="only how many there are")] = False
    ids: Annotated[bool, option("--ids", section=OUTPUT, help="only the ids, for llm score --ids")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object")] = False


def execute(options: Options, console: Console) -> int:
    if options.table + options.count + options.ids + options.json + options.decode > 1:
        raise UsageError("--table, --count, --ids, --json and --decode", "they exclude each other", "Give one of them")
    text = stdin.gather(options, console)
    from llmcli import engine

    name, tokenizer, template = engine.read_text(options.model)
    ids = read_ids(text) if options.decode else options.encoder(name, tokenizer, template)(text)
    with open_answer(options.output) as answer:
        if options.decode:
            answer.write(tokenizer.decode(ids) + "\n")
        elif options.count:
            answer.write(f"{len(ids)}\n")
        elif options.ids:
            answer.write(" ".join(map(str, ids)) + "\n")
        elif options.json:
            named = [(number, tokenizer.token_bytes(number)) for number in ids]
            tokens = [{"id": number, "text": data.decode("utf-8", "replace"), "bytes": data.hex()} for number, data in named]
            answer.write(to_line({"schema": SCHEMA, "model": name, "count": len(ids), "tokens": tokens}))
        else:
            if options.table or options.output is not None or not console.colored(sys.stdout):
                _table(options, answer, tokenizer, ids)
            else:
                _pieces(answer, tokenizer, ids)
            size = len(text.encode())
            ratio = f", {size / len(ids):.2f} bytes a token" if ids else ""
            answer.write(f"{len(ids):,} token{'' if len(ids) == 1 else 's'} of {size:,} bytes of text{ratio}, {name}\n")
    return 0


def _table(options: Options, answer: Answer, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    terminal = options.output is None and is_terminal(sys.stdout)
    rows = Rows(LAYOUT, shutil.get_terminal_size().columns if terminal else 0)
    answer.write_styled(rows.header())
    for position, number in enumerate(ids):
        data = tokenizer.token_bytes(number)
        answer.write_styled(rows.row([str(position), str(number), bars.visible(tokenizer.token_text(number), data), data.hex(" ")]))


def _pieces(answer: Answer, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """The text, neighbouring tokens on different colours; control tokens dim."""
    from llmcli.text.tokenizer import Stream

    stream, painter, colors = Stream(tokenizer), Painter(), itertools.cycle(TURNS)
    for number in ids:
        control = number in tokenizer.control
        piece = tokenizer.token_text(number) if control else stream.feed(number)
        if piece:
            answer.write_styled(painter.paint(piece, bars.DIM if control else next(colors)))
    answer.write_styled(painter.paint(stream.finish(), next(colors)) + painter.finish())
