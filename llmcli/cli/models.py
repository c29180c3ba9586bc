"""`llm models`: the models that have a short name, with those that are here."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass

from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import Common, Json
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.table import table
from llmcli.cli.units import amount

ABOUT = """
Lists the models that have a short name, with their size, context, licence and the quantizations that are on this machine. Names of
your own go into models.toml (llm docs environment). Get one with llm pull; llm list has all that are here, with or without a short
name.
"""

EXAMPLE = """
llm models
llm models --json
"""


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    pass


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    known = library.known()
    with open_answer() as answer:
        if options.json:
            records = [{"name": model.name, **dataclasses.asdict(model.alias), "here": model.here} for model in known]
            answer.write(to_line({"schema": SCHEMA, "models": records}))
            return 0
        rows = [("NAME", "WEIGHTS", "CONTEXT", "LICENCE", "HERE", "ABOUT")]
        for model in known:
            alias = model.alias
            licence = alias.licence + (" (gated)" if alias.gated else "")
            weights, context = amount(alias.parameters) if alias.parameters else "", f"{alias.context:,}" if alias.context else ""
            rows.append((model.name, weights, context, licence, " ".join(model.here) or "-", alias.about))
        columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0
        answer.write(table(rows, right=[1, 2], columns=columns))
    return 0
