"""`llm show [NAME]`: what a model is."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any

from llmcli.cli.console import Console, open_answer
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.units import size
from llmcli.text import escape


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", nargs="?", help="a model of llm list, or a path (default: as for llm run)")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def execute(arguments: Namespace, console: Console) -> int:
    from llmcli import engine

    facts = engine.describe(arguments.model)
    with open_answer() as answer:
        if arguments.json:
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
        return [(label, "")] + [("  " + part_label, shown) for part in value.items() for part_label, shown in _lines(part[0], part[1])]
    if isinstance(value, bool):
        return [(label, "yes" if value else "no")]
    if isinstance(value, int):
        return [(label, f"{value:,}" + (f" ({size(value)})" if "bytes" in name else ""))]
    return [(label, str(value))]
