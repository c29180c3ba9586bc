"""`llm pull MODEL`: gets a model from a hub and quantizes it on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import AllowConfig, Common, number, option
from llmcli.cli.progress import progress

ABOUT = """
Gets a model from a Hugging Face hub, shard by shard, and quantizes it on the way; prints the path of the packed file. What it
takes is said before the first byte of a weight is fetched, and refused where it does not fit. After an interrupt or a kill the
same command goes on where it stopped; every hash is compared.

A model that is here is not fetched again. Gated models need HF_TOKEN (llm docs environment).
"""

EXAMPLE = """
llm pull smollm2-135m                         # a name of llm models
llm pull HuggingFaceTB/SmolLM2-135M-Instruct --quant int4
llm pull org/repo@main --name mine            # a branch, tag or commit
llm pull org/repo:int8 --keep-source
"""


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
    allow_config: AllowConfig = None


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
            allow=options.allow_config or (),
        )
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
