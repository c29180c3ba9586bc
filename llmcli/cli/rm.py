"""`llm rm NAME`: removes a model, or one of its quantizations (NAME:int4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common

EXAMPLE = "llm rm SmolLM2-135M:int8"


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    model: Annotated[str, typer.Argument(metavar="NAME", help="NAME: all quantizations; NAME:int4: that one", rich_help_panel="The model")]


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    removed = library.remove(options.model)
    with open_answer() as answer:
        for path in removed:
            answer.write(f"removed {path}\n")
    return 0
