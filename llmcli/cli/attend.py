"""`llm attend [TEXT]`: how attention spreads over a text, token by token, in any layer and head."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmcli.cli import bars, shares, stdin
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, count, option
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.tokens import Tokens
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.pages.attention import Page

WHAT = "What to look at"

ABOUT = """
Shows attention weights: how each token of a text spreads its attention over the tokens up to itself, in one head of one layer, or in
the mean of a layer's heads. Layers and heads are numbered from 0. The weights say what a head reads from where, not why the model
decides as it does.

On a terminal they are a table of colours, as wide as fits; --html writes a page with all layers and heads.
"""

EXAMPLE = """
llm attend "Tom had a red ball. He lost his"
llm attend "Tom had a red ball. He lost his" --layer 2 --head 1
llm attend "Tom had a red ball. He lost his" --html attention.html
llm attend -f essay.txt --layer 0 --json > weights.json
"""


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Output, Model, Common):
    layer: Annotated[
        int | None, option("--layer", section=WHAT, metavar="L", parser=count(0, 10_000), help="of this layer, from 0 (the last)")
    ] = None
    head: Annotated[
        int | None, option("--head", section=WHAT, metavar="H", parser=count(0, 10_000), help="of this head, from 0 (the mean of all)")
    ] = None
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object")] = False
    html: Annotated[
        Path | None, option("--html", section=OUTPUT, metavar="FILE", help="a page for a browser as well, with all layers and heads")
    ] = None


def execute(options: Options, console: Console) -> int:
    text = stdin.gather(options, console)
    engine = options.load(console, chat=options.chat, taps=("attention",))
    with contextlib.closing(engine):
        from llmcli.attention import heads

        ids = options.encoder(engine.name, engine.tokenizer, engine.template if options.chat else None)(text)
        layer = len(engine.plan.cache) - 1 if options.layer is None else options.layer
        most = heads(engine.plan, layer)
        if options.head is not None and options.head >= most:
            raise UsageError(f"head {options.head}", f"layer {layer} has {most}, from 0 to {most - 1}", "Change --head")
        with open_answer(options.output) as answer, _page(options, engine, ids, layer) as page:
            weights = _weights(engine, ids, layer, options.head, page)
            if options.json:
                answer.write(to_line(_record(engine, ids, layer, options.head, weights)))
                return 0
            if page is None:
                _table(options, console, engine, ids, weights, answer)
            which = f"the mean of {most} heads" if options.head is None else f"head {options.head} of {most}"
            answer.write(f"layer {layer} of {len(engine.plan.cache)}, {which}, {engine.name}, {len(ids):,} tokens of text\n")
    return 0


def _weights(engine: Engine, ids: list[int], layer: int, head: int | None, page: Page | None) -> list[list[float]]:
    """Row i: how token i spreads over tokens 0 to i. A page gets all layers and heads meanwhile."""
    from llmcli.attention import Matrix, attention
    from llmcli.past import Past

    matrix = Matrix(engine.plan, len(ids), layer, head)
    with Past(engine) as past:
        for part in attention(past, ids, range(len(engine.plan.cache)) if page else [layer]):
            matrix.add(part)
            if page:
                page.add(part.layer, part.head, [row[: part.first + i + 1].tolist() for i, row in enumerate(part.weights)])
    return matrix.rows()


@contextlib.contextmanager
def _page(options: Options, engine: Engine, ids: list[int], layer: int) -> Iterator[Page | None]:
    """The page that --html asks for, which appears whole or not at all."""
    if options.html is None:
        yield None
        return
    from llmcli.attention import heads
    from llmcli.pages.attention import Page

    page = Page(_names(engine, ids), [heads(engine.plan, number) for number in range(len(engine.plan.cache))])
    with open_answer(options.html) as answer:
        yield page
        page.write(answer.write, f"llm attend, {engine.name}", layer, options.head)


def _record(engine: Engine, ids: Sequence[int], layer: int, head: int | None, weights: Sequence[Sequence[float]]) -> dict[str, Any]:
    tokens = [{"id": number, "text": engine.tokenizer.token_text(number)} for number in ids]
    # A float32 has seven digits; what is behind them is noise of the conversion.
    short = [[float(f"{share:.7g}") for share in row] for row in weights]
    return {"schema": SCHEMA, "model": engine.name, "layer": layer, "head": head, "tokens": tokens, "weights": short}


def _table(
    options: Options, console: Console, engine: Engine, ids: Sequence[int], weights: Sequence[Sequence[float]], answer: Answer
) -> None:
    terminal = options.output is None and is_terminal(sys.stdout)
    colored = options.output is None and console.colored(sys.stdout)
    columns = shutil.get_terminal_size().columns if terminal else 0
    # The names' own escape filter has shown what a terminal would obey; the rest are our colours.
    answer.write_styled(shares.grid(_names(engine, ids), weights, colored, columns))


def _names(engine: Engine, ids: Sequence[int]) -> list[str]:
    return [bars.visible(engine.tokenizer.token_text(number), engine.tokenizer.token_bytes(number)) for number in ids]
