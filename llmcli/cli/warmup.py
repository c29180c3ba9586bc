"""`llm warmup`: compiles kernels ahead, so that the first run does not wait."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from llmcli.cli.console import Console
from llmcli.cli.options import Common, option
from llmcli.cli.progress import progress

ABOUT = """
Compiles the kernels that common models need and keeps them, so that the first run does not wait: those for this CPU and, where llm
uses it, for this machine's NVIDIA GPU. It takes about a minute, once for each version of llm and processor. llm doctor says how many
there are.
"""

EXAMPLE = """
llm warmup
llm warmup -q && llm run "Once upon a time"
llm warmup --gpu-arch sm_90                   # for a machine with an H100
"""
WHAT = "What to compile"


def architecture(word: str) -> Architecture:
    """A converter: NVIDIA's name of a compute capability."""
    found = re.fullmatch(r"sm_(\d+)(\d)", word)
    if not found:
        raise typer.BadParameter(f"{word!r} is not sm_ and a number, such as sm_80 (A100), sm_89 (RTX 40), sm_90 (H100)")
    return Architecture((int(found[1]), int(found[2])))


class Architecture(tuple[int, int]):
    """A compute capability, such as (9, 0)."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    device: Annotated[
        str, option("--device", section=WHAT, metavar="NAME", help="whose kernels: cpu, cuda (this machine's GPU), or auto (default): both")
    ] = "auto"
    gpu_arch: Annotated[
        Architecture | None,
        option("--gpu-arch", section=WHAT, metavar="sm_NN", parser=architecture, help="those of such a GPU, which need not be here"),
    ] = None


def execute(options: Options, console: Console) -> int:
    from llmcli import warmup

    with progress(console) as report:
        done = list(warmup.warmup(options.device, options.gpu_arch, report, console.note))
    for ready in done:
        how = f"{ready.compiled} compiled in {ready.seconds:.1f} s" if ready.compiled else "all were there"
        console.note(f"{ready.kernels} kernels for {ready.target} ({how}) in {ready.folder}")
    return 0
