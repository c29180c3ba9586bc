"""`llm list`: the models that are here."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, Json
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.units import size
from llmcli.text import escape

FIELDS = ("name", "quantization", "size", "date", "source", "path", "damaged")


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    pass


def execute(options: Options, console: Console) -> int:
    from llmcli import engine

    models = engine.list_models()
    with open_answer() as answer:
        if options.json:
            answer.write(to_line({"schema": SCHEMA, "models": [{name: getattr(model, name) for name in FIELDS} for model in models]}))
            return 0
        rows = [("NAME", "SIZE", "MADE", "FROM")]
        for model in models:
            note = f"damaged: {model.damaged}" if model.damaged else model.source
            name = f"{model.name}:{model.quantization}" if model.quantization else model.name
            rows.append((escape.name(name), size(model.size), model.date, escape.name(note)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for name, bytes_, date, note in rows:
            answer.write(f"{name:<{widths[0]}}  {bytes_:>{widths[1]}}  {date:<{widths[2]}}  {note}".rstrip() + "\n")
    if not models:
        console.note("no models yet: llm import DIR makes one of a folder")
    return 0
