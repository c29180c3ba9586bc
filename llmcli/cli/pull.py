"""`llm pull MODEL`: gets a model from a hub and quantizes it on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, number, option
from llmcli.cli.progress import progress

EXAMPLE = "llm pull HuggingFaceTB/SmolLM2-135M-Instruct --quant int4"


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="an alias, or org/repo[@revision], with or without :int4", rich_help_panel="The model"),
    ]
    quant: Annotated[
        Literal["int8", "int4", "none"] | None,
        option("--quant", section="The model", metavar="TYPE", help="how weights are stored: int8, int4, none (the alias's, else int8)"),
    ] = None
    name: Annotated[str | None, option("--name", section="The model", metavar="NAME", help="what to call it (the alias or org/repo)")] = (
        None
    )
    keep_source: Annotated[bool, option("--keep-source", section="The model", help="keep what was downloaded")] = False
    timeout: Annotated[
        float | None,
        option("--timeout", section="The model", metavar="S", parser=number(0, 10**6), help="wait S seconds for another that gets it"),
    ] = None


def execute(options: Options, console: Console) -> int:
    from llmcli import acquire

    with progress(console, bytes=True) as report:
        path = acquire.pull(
            options.model,
            options.quant,
            options.name,
            keep_source=options.keep_source,
            timeout=options.timeout,
            progress=report,
            notify=console.note,
        )
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
