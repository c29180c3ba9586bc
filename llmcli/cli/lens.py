"""`llm lens [TEXT]`: what each layer would have predicted, and how far that is from what the model predicts."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from llmcli.cli import bars, shares, stdin
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, count, option
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.tokens import Tokens

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.lens import View

WHAT = "What to look at"

ABOUT = """
Shows what each layer of the model would have predicted, had it been the last one (the logit lens): the residual stream after it, through
the final norm and the output head. KL is the divergence of that prediction from the model's own, in nats; after the last layer it is 0.
The first row is the embedding of the last token alone, before any layer.
"""

EXAMPLE = """
llm lens "Tom had a red ball. He lost his"
llm lens "Tom had a red ball. He lost his" --all   # at every place of the text
llm lens "Tom had a red ball. He lost his" -k 5 --json
"""

CELL = 10
"""Columns of a layer's favourite in the table of all places."""


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Output, Model, Common):
    k: Annotated[int, option("-k", section=WHAT, metavar="K", parser=count(1, 10_000), help="the K likeliest tokens of each layer (3)")] = 3
    all: Annotated[bool, option("--all", section=WHAT, help="at every place of the text, not the last alone")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object; with --all one a line")] = False


def execute(options: Options, console: Console) -> int:
    text = stdin.gather(options, console)
    engine = options.load(console, chat=options.chat, taps=("lens",))
    with contextlib.closing(engine):
        from llmcli.lens import lens
        from llmcli.past import Past

        ids = options.encoder(engine.name, engine.tokenizer, engine.template if options.chat else None)(text)
        with Past(engine) as past, open_answer(options.output) as answer:
            shown = 1 if options.all and not options.json else min(options.k, engine.plan.vocab)
            found = lens(past, ids, shown, 0 if options.all else None)
            terminal = options.output is None and is_terminal(sys.stdout)
            columns = shutil.get_terminal_size().columns if terminal else 0
            colored = options.output is None and console.colored(sys.stdout)
            table = Places(engine, columns, colored)
            for position, views in found:
                if options.json:
                    answer.write(to_line(_record(engine, ids, position, views)))
                elif options.all:
                    answer.write_styled(table.row(position, ids[position], views))
                else:
                    answer.write_styled(_layers(engine, views, columns, colored))
            if not options.json:
                answer.write_styled(shares.legend(True) if options.all and colored else "")
                answer.write(f"{engine.name}, {len(ids):,} tokens of text\n")
    return 0


def _record(engine: Engine, ids: Sequence[int], position: int, views: Sequence[View]) -> dict[str, Any]:
    tokens = [{"id": number, "text": engine.tokenizer.token_text(number)} for number in ids[: position + 1]]
    layers = [
        {
            "layer": view.layer,
            "kl": view.kl,
            "final_logprob": view.final_logprob,
            "final_rank": view.final_rank,
            "top": [{**_named(engine, number), "logprob": value} for number, value in view.top],
        }
        for view in views
    ]
    return {"schema": SCHEMA, "model": engine.name, "position": position, "tokens": tokens, "layers": layers}


def _named(engine: Engine, number: int) -> dict[str, Any]:
    data = engine.tokenizer.token_bytes(number)
    return {"id": number, "text": data.decode("utf-8", "replace"), "bytes": data.hex()}


def _layers(engine: Engine, views: Sequence[View], columns: int, colored: bool) -> str:
    """A row a layer: its favourite with a bar, the divergence, what became of the model's favourite, and the others."""
    final = views[-1].top[0][0]
    rows = [["layer", "token", "", "probability", "KL", _name(engine, final), "rank", "then"]]
    for view in views:
        (favourite, value), *others = view.top
        rest = "  ".join(f"{_name(engine, number)} {bars.percent(math.exp(own))}" for number, own in others)
        prob, its = math.exp(value), bars.percent(math.exp(view.final_logprob))
        rows.append([_layer(view), _name(engine, favourite), bars.bar(prob), bars.percent(prob), f"{view.kl:.3f}", its])
        rows[-1] += [str(view.final_rank), rest]
    widths = [max(map(bars.width, cells)) for cells in zip(*rows, strict=True)]
    widths[1], widths[2], widths[5] = min(widths[1], 16), bars.BAR, min(widths[5], 16)
    if columns:
        for column, least in ((7, 0), (2, 8), (2, 0), (6, 0), (5, 0)):  # what a narrow terminal does without
            over = sum(widths) + 2 * (sum(map(bool, widths)) - 1) - columns
            if over > 0:
                widths[column] = max(least, widths[column] - over) if column != 7 or widths[7] - over >= 12 else 0
    lines = []
    for number, row in enumerate(rows):
        cells = {at: bars.align(cell, widths[at], at in (1, 2, 7)) for at, cell in enumerate(row) if widths[at]}
        if colored and number and 2 in cells:
            cells[2] = f"{bars.CYAN}{cells[2]}{bars.PLAIN}"
        line = "  ".join(cells.values()).rstrip()
        lines.append(f"{bars.DIM}{line}{bars.PLAIN}" if colored and not number else line)
    return "\n".join(lines) + "\n"


class Places:
    """The table of all places: a row a token, a column a layer, in it the token that is likeliest behind it, on the colour of its
    probability. Where the terminal is narrow, some of the layers in between are left out."""

    def __init__(self, engine: Engine, columns: int, colored: bool) -> None:
        self._engine, self._colored = engine, colored
        count = len(engine.plan.cache) + 1
        fit = max(2, (columns - 6 - CELL) // (CELL + 1)) if columns else count
        self._shown = list(range(count)) if count <= fit else [round(i * (count - 1) / (fit - 1)) for i in range(fit)]

    def row(self, position: int, number: int, views: Sequence[View]) -> str:
        """The row of a token, and the header before the first."""
        cells = []
        for view in (views[at] for at in self._shown):
            token, value = view.top[0]
            cell, color = bars.align(_name(self._engine, token), CELL, True), shares.color(math.exp(value)) if self._colored else ""
            cells.append(f"{color}{cell}{bars.PLAIN}" if color else cell)
        line = f"{position:>5} {bars.align(_name(self._engine, number), CELL, True)} {' '.join(cells).rstrip()}\n"
        return line if position else self._header(views) + line

    def _header(self, views: Sequence[View]) -> str:
        cells = [bars.align(_layer(views[at]), CELL, True) for at in self._shown]
        line = f"{'':5} {bars.align('token', CELL, True)} {' '.join(cells)}".rstrip()
        return f"{bars.DIM}{line}{bars.PLAIN}\n" if self._colored else f"{line}\n"


def _layer(view: View) -> str:
    return "embedding" if view.layer is None else str(view.layer)


def _name(engine: Engine, number: int) -> str:
    return bars.visible(engine.tokenizer.token_text(number), engine.tokenizer.token_bytes(number))
