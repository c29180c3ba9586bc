"""`llm explore [TEXT]`: what a model might say, as a tree that is walked with the arrow keys."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from llmcli.cli import stdin
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Sampling, count, option, ranged
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.tokens import Tokens
from llmcli.errors import MissingExtra, UsageError

THE_TREE = "The tree"

ABOUT = """
Shows the likeliest next tokens after a text, on a terminal of any size: walk along them with the arrow keys, take one with Enter, go
back with Backspace. The model can write on from any place (g), and show where most of the probability goes (e). What was computed once
is there at once.

s saves the tree as JSON, or as a page for a browser when the name ends with .html; q ends and prints the text on standard output.
It needs an optional package: pip install 'llmcli[explore]'.
"""

EXAMPLE = """
llm explore "The cat sat on the"
llm explore -m NAME --chat "Why is the sky blue?"
llm explore -f story.txt -o story.html        # what s saves
cat notes.txt | llm explore > chosen.txt      # keys come from the terminal
"""


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Sampling, Model, Common):
    k: Annotated[
        int, option("-k", section=THE_TREE, metavar="K", parser=count(1, 100), help="tokens at each place, likeliest first (12)")
    ] = 12
    max_tokens: Annotated[
        int, option("-n", "--max-tokens", section=THE_TREE, metavar="N", parser=count(1, 10**6), help="how many tokens g writes (32)")
    ] = 32
    expand: Annotated[int, option("--expand", section=THE_TREE, metavar="N", parser=count(1, 1000), help="how many tokens e adds (24)")] = (
        24
    )
    seed: Annotated[
        int | None,
        option("--seed", section=THE_TREE, metavar="N", parser=ranged("seed"), help="the same seed, the same texts of g (a new one)"),
    ] = None
    output: Annotated[
        Path, option("-o", "--output", section=OUTPUT, metavar="FILE", help="what s saves to, .json or .html (tree.json)")
    ] = Path("tree.json")


def execute(options: Options, console: Console) -> int:
    if importlib.util.find_spec("textual") is None:
        raise MissingExtra("llm explore", "it needs the package textual", "Install it: pip install 'llmcli[explore]'")
    if not is_terminal(sys.stderr):
        raise UsageError("llm explore", "it needs a terminal, and standard error is none", "In scripts, use llm next")
    text = stdin.gather(options, console)
    from llmcli.tree import TEXTS

    with _keys():
        engine = options.load(console, chat=options.chat, texts=TEXTS)
        with contextlib.closing(engine):
            from llmcli.cli.explore_app import Explorer
            from llmcli.generate import settings_for
            from llmcli.tree import Tree

            ids = options.encoder(engine.name, engine.tokenizer, engine.template if options.chat else None)(text)
            seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
            with contextlib.closing(Tree(engine, ids, settings_for(engine, options.overrides() | {"seed": seed}), options.k)) as tree:
                tree.look(tree.root)
                prompt = text + "\n" if options.chat else text
                if not console.colored(sys.stderr):
                    os.environ["NO_COLOR"] = "1"
                app = Explorer(tree, prompt, options.max_tokens, options.expand, options.output)
                before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
                try:
                    app.run(mouse=False)
                finally:
                    for number, handler in before:
                        signal.signal(number, handler)
                code: int = app.return_code or 0
                if code:
                    return code
                with open_answer() as answer:
                    answer.write(prompt + tree.text(app.node) + "\n")
    return 0


def save(record: dict[str, object], path: Path) -> None:
    """Writes a tree as a page where the name says so, else as JSON. Raises DiskError."""
    from llmcli.pages.tree import page

    with open_answer(path) as answer:
        answer.write(page(record) if path.suffix.lower() in (".html", ".htm") else to_line({"schema": SCHEMA, **record}))


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Standard input is the terminal: where it was a pipe, whose text has been read, the terminal takes its place. Raises UsageError."""
    if is_terminal(sys.__stdin__):
        yield
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError as error:
        raise UsageError("llm explore", f"no terminal for the keys: {error.strerror}", "In scripts, use llm next") from error
    before = os.dup(0)
    os.dup2(terminal, 0)
    os.close(terminal)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)
