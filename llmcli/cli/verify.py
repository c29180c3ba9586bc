"""`llm verify [NAME...]`: every byte of models compared with its hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import MODEL, Common
from llmcli.cli.progress import progress
from llmcli.cli.units import size
from llmcli.errors import HashMismatch, LlmError
from llmcli.text import escape

ABOUT = """
Reads models whole and compares every SHA-256 and checksum; without a name, all models. A line a model. The exit code is 6 where bytes
differ and 3 where a file is no model any more.
"""

EXAMPLE = """
llm verify SmolLM2-135M
llm verify SmolLM2-135M:int4 demo
llm verify                                    # all of them
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="names of llm list, or paths (all models)", rich_help_panel=MODEL)
    ] = None


def execute(options: Options, console: Console) -> int:
    from llmcli import library

    models = library.meant(options.models or [])
    faults: list[LlmError] = []
    with open_answer() as answer:
        for label, path in models.items():
            try:
                with progress(console) as report:
                    verdict = f"ok, {size(library.verify(label, path, report))}"
            except LlmError as fault:
                faults.append(fault)
                verdict = f"damaged: {fault.why or fault.what}"
            answer.write(f"{escape.name(label)}: {escape.name(verdict)}\n")
    if len(faults) == 1:
        raise faults[0]
    if faults:
        kind = HashMismatch if any(isinstance(fault, HashMismatch) for fault in faults) else type(faults[0])
        raise kind(f"{len(faults)} of {len(models)} models are damaged", todo="Remove them with llm rm and get them again")
    return 0
