"""`llm clean`: removes what interrupted work and other versions of llm left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import Common, option
from llmcli.cli.table import table
from llmcli.cli.units import size

ABOUT = """
Removes unfinished downloads and models, temporary files, locks, and kernels that another version of llm or another CPU compiled; prints
what goes. Models, sources kept on purpose and what another process works on stay.
"""

EXAMPLE = """
llm clean --dry-run                           # look first
llm clean
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    dry_run: Annotated[bool, option("--dry-run", section="What to do", help="only say what would be removed")] = False


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    found = library.left_over()
    if not options.dry_run:
        library.clean(found)
    with open_answer() as answer:
        if found:
            answer.write(table([(leftover.kind, size(leftover.size), str(leftover.path)) for leftover in found], right=[1]))
    total = size(sum(leftover.size for leftover in found))
    console.note(f"{total} {'would be' if options.dry_run else 'are'} free again" if found else "nothing to remove")
    return 0
