"""`llm warmup`: compiles every kernel ahead, so that the first run does not wait."""

from __future__ import annotations

import argparse
from argparse import Namespace

from llmcli.cli.console import Console
from llmcli.cli.progress import progress


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def execute(arguments: Namespace, console: Console) -> int:
    from llmcli import engine

    with progress(console) as report:
        engine.warmup(report)
    return 0
