"""`llm quantize NAME --quant TYPE`: a smaller model of one that is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import MODEL, Common, option
from llmcli.cli.progress import progress

ABOUT = """
Makes a model in fewer bits of one that is here, and prints the path of the packed file. It is made of the folder that the model was
imported from, where that still holds the same, else of the packed file with the most bits. llm show says what a model takes.
"""

EXAMPLE = """
llm quantize SmolLM2-135M --quant int4
llm quantize SmolLM2-135M --quant int4 --name tiny
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    model: Annotated[str, typer.Argument(metavar="NAME", help="a name of llm list, or a path", rich_help_panel=MODEL)]
    quant: Annotated[
        Literal["int8", "int4", "none"], option("--quant", section=MODEL, metavar="TYPE", help="how weights are stored: int8, int4, none")
    ]
    name: Annotated[str | None, option("--name", section=MODEL, metavar="NAME", help="what to call it (as before)")] = None


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    with progress(console) as report:
        path = library.quantize(options.model, options.quant, options.name, report, console.note)
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
