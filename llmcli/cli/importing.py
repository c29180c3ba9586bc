"""`llm import DIR`: a folder in the Hub's layout becomes a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, option
from llmcli.cli.progress import progress
from llmcli.errors import NotFound

EXAMPLE = "llm import ~/models/SmolLM2-135M --quant int4"


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", readable=False, help="with config.json, safetensors files and tokenizer.json", rich_help_panel="The model"
        ),
    ]
    quant: Annotated[
        Literal["int8", "int4", "none"],
        option("--quant", section="The model", metavar="TYPE", help="how weights are stored: int8 (default), int4, none"),
    ] = "int8"
    name: Annotated[str | None, option("--name", section="The model", metavar="NAME", help="what to call it (the folder's name)")] = None


def execute(options: Options, console: Console) -> int:
    if not options.folder.is_dir():
        raise NotFound(f"no folder {str(options.folder)!r}", "", "Check the name")
    from llmcli import engine

    with progress(console) as report:
        path = engine.import_folder(options.folder, options.quant, options.name, report)
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
