"""`llm list`: the models that are here."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, Json
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.table import table
from llmcli.cli.units import size

FIELDS = ("name", "quantization", "size", "date", "source", "path", "damaged")

ABOUT = """
Lists the models on this machine: name and quantization, size, date, and what each was made of. Damaged files are marked. llm show has
more about one model, llm models those that can be had by a short name.
"""

EXAMPLE = """
llm list
llm list --json | jq -r '.models[].name'
"""


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    pass


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    models = library.list_models()
    with open_answer() as answer:
        if options.json:
            answer.write(to_line({"schema": SCHEMA, "models": [{name: getattr(model, name) for name in FIELDS} for model in models]}))
            return 0
        rows = [("NAME", "SIZE", "MADE", "FROM")]
        for model in models:
            name = f"{model.name}:{model.quantization}" if model.quantization else model.name
            rows.append((name, size(model.size), model.date, f"damaged: {model.damaged}" if model.damaged else model.source))
        answer.write(table(rows, right=[1]))
    if not models:
        console.note("no models yet: llm import DIR makes one of a folder")
    return 0
