"""`llm rm NAME`: removes a model, or one of its quantizations (NAME:int4)."""

from __future__ import annotations

import argparse
from argparse import Namespace

from llmcli.cli.console import Console, open_answer


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="NAME: all quantizations; NAME:int4: that one")


def execute(arguments: Namespace, console: Console) -> int:
    from llmcli import engine

    removed = engine.remove(arguments.model)
    with open_answer() as answer:
        for path in removed:
            answer.write(f"removed {path}\n")
    return 0
