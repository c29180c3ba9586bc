"""`llm warmup`: compiles every kernel ahead, so that the first run does not wait."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.cli.console import Console
from llmcli.cli.options import Common
from llmcli.cli.progress import progress

ABOUT = """
Compiles the kernels that common models need and keeps them, so that the first run does not wait. It takes about a minute, once for each
version of llm and CPU. llm doctor says how many there are.
"""

EXAMPLE = """
llm warmup
llm warmup -q && llm run "Once upon a time"
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """It has none of its own."""


def execute(options: Options, console: Console) -> int:
    from llmcli import engine

    with progress(console) as report:
        engine.warmup(report, console.note)
    return 0
