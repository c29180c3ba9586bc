"""`llm rm NAME`: removes a model, or one of its quantizations (NAME:int4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common

ABOUT = """
Removes a model in all its quantizations, or one of them, and prints the files that are gone. Only files in the models folder are
removed; the demo model, which is part of the package, stays. llm list shows the names.
"""

EXAMPLE = """
llm rm SmolLM2-135M:int8                      # this quantization
llm rm SmolLM2-135M                           # all of them
"""


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
