"""`llm use [NAME]`: the model that commands take without -m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from llmcli import settings
from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import MODEL, Common
from llmcli.text import escape

ABOUT = """
Makes a model the one that commands take without -m, by writing it into config.toml; without a name, says which it is and what says
so. LLMCLI_MODEL wins over it, and -m over both.
"""

EXAMPLE = """
llm use SmolLM2-135M:int4
llm use                                       # which is it?
llm use demo
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    model: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a name of llm list, or a path; none: say which it is", rich_help_panel=MODEL)
    ] = None


def execute(options: Options, console: Console) -> int:
    if options.model is not None:
        from llmcli import library

        library.use(options.model)
    model, origin = settings.default_and_origin()
    with open_answer() as answer:
        answer.write(f"{escape.name(model)} ({escape.name(origin or 'comes with llm')})\n")
    if options.model is not None and origin == settings.VARIABLE:
        console.note(f"{settings.path()} says {options.model} now, but {settings.VARIABLE} is set and wins")
    return 0
