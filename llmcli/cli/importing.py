"""`llm import DIR`: a folder in the Hub's layout becomes a model of ours."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from llmcli.cli.console import Console, open_answer
from llmcli.cli.progress import progress
from llmcli.errors import NotFound


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="config.json, safetensors files and tokenizer.json")
    parser.add_argument("--quant", choices=("int8", "int4", "none"), default="int8", help="how weights are stored (int8)")
    parser.add_argument("--name", metavar="NAME", help="what to call it (default: the folder's name)")


def execute(arguments: Namespace, console: Console) -> int:
    if not arguments.folder.is_dir():
        raise NotFound(f"no folder {str(arguments.folder)!r}", "", "Check the name")
    from llmcli import engine

    with progress(console) as report:
        path = engine.import_folder(arguments.folder, arguments.quant, arguments.name, report)
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
