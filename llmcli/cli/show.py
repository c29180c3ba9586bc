"""`llm show [NAME]`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import MODEL, Common, Json, count, gpu_layers, option
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.table import table
from llmcli.cli.units import size
from llmcli.errors import UsageError
from llmcli.text import escape

ABOUT = """
Says what a model is: architecture, shape, number of weights, tokenizer, source, and the memory that it takes with a full context. No
weights are loaded. Without a name: the model that llm run takes without -m.
"""

EXAMPLE = """
llm show demo -c 512
llm show demo --plan                          # the operations that compute a token
llm show NAME --template                      # the chat template
llm show NAME --gpu-layers auto               # what a GPU would compute, and why
llm show NAME --json
"""


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    model: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a name of llm list, or a path (as for llm run)", rich_help_panel=MODEL)
    ] = None
    context: Annotated[
        int | None, option("-c", "--context", metavar="N", parser=count(1, 2**24), help="memory for N tokens of context (at most 4096)")
    ] = None
    plan: Annotated[bool, option("--plan", help="the operations that compute a token instead")] = False
    template: Annotated[bool, option("--template", help="the chat template instead")] = False
    gpu_layers: Annotated[
        Any, option("-ngl", "--gpu-layers", metavar="N", parser=gpu_layers, help="which layers go to GPUs instead: N, auto or all")
    ] = None


def execute(options: Options, console: Console) -> int:
    if options.json + options.plan + options.template + (options.gpu_layers is not None) > 1:
        raise UsageError("--json, --plan, --template and --gpu-layers", "they exclude each other", "Give one of them")
    from llmcli import library

    if options.plan:
        text = f"{library.plan_of(options.model, options.context)}\n"
    elif options.gpu_layers is not None:
        text = _placement(*library.gpu_placement(options.model, options.context, options.gpu_layers))
    elif options.template:
        text = library.template(options.model).rstrip("\n") + "\n"
    else:
        facts = library.describe(options.model, options.context)
        text = to_line({"schema": SCHEMA, **facts}) if options.json else _text(facts)
    with open_answer() as answer:
        answer.write(text)
    return 0


def _text(facts: dict[str, Any]) -> str:
    lines = (f"{label:<24}{escape.name(shown)}".rstrip() for name, value in facts.items() for label, shown in _lines(name, value))
    return "\n".join(lines) + "\n"


def _placement(rows: list[dict[str, Any]], reason: str) -> str:
    shown = [["layer", "device", "weights", "cache", "why"]]
    shown += [[str(row["layer"]), row["device"], size(row["weights"]), size(row["cache"]), row["why"]] for row in rows]
    return table(shown, right=(0, 2, 3)) + (f"no GPU is used: {escape.name(reason)}\n" if reason else "")


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
