"""`llm warmup`: compiles every kernel ahead, so that the first run does not wait."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.cli.console import Console
from llmcli.cli.options import Common
from llmcli.cli.progress import progress

EXAMPLE = "llm warmup"


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """It has none of its own."""


def execute(options: Options, console: Console) -> int:
    from llmcli import engine

    with progress(console) as report:
        engine.warmup(report, console.note)
    return 0
