"""`llm show [NAME]`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, Json
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.units import size
from llmcli.text import escape


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    model: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a name of llm list, or a path (as for llm run)", rich_help_panel="The model")
    ] = None


def execute(options: Options, console: Console) -> int:
    from llmcli import engine

    facts = engine.describe(options.model)
    with open_answer() as answer:
        if options.json:
            answer.write(to_line({"schema": SCHEMA, **facts}))
            return 0
        for name, value in facts.items():
            for label, shown in _lines(name, value):
                answer.write(f"{label:<24}{escape.name(shown)}".rstrip() + "\n")
    return 0


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    """(label, value) of a fact; a fact with parts has a line for each."""
    label = escape.name(name.replace("_", " "))
    if isinstance(value, dict):
        return [(label, "")] + [(f"  {escape.name(part)}", f"{number:,} ({size(number)})") for part, number in value.items()]
    if isinstance(value, bool):
        return [(label, "yes" if value else "no")]
    if isinstance(value, int):
        return [(label, f"{value:,}" + (f" ({size(value)})" if "bytes" in name else ""))]
    return [(label, str(value))]
