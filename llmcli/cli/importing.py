"""`llm import DIR` or FILE.gguf: a folder in the Hub's layout, or a GGUF file, becomes a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import AllowConfig, Common, option
from llmcli.cli.progress import progress
from llmcli.errors import NotFound, UsageError

ABOUT = """
Makes one packed file of a folder in the Hub's layout (config.json, *.safetensors, tokenizer.json), or of a GGUF file from llama.cpp,
Ollama or LM Studio, and prints its path. The source stays as it is. Nothing of it is run: pickled weights are refused, and so is a
config.json whose fields llm does not know (llm docs models).

The model is then known to llm run -m NAME.
"""

EXAMPLE = """
llm import ~/models/SmolLM2-135M --quant int4
llm import ~/models/SmolLM2-135M --name small
llm import model.gguf --quant int8            # one more rounding loses little in int8
llm import model.Q4_K_M.gguf --keep-blocks    # no rounding: 5 bits a weight
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE.gguf",
            readable=False,
            help="a folder with config.json, safetensors and tokenizer.json, or a GGUF file",
            rich_help_panel="The model",
        ),
    ]
    quant: Annotated[
        Literal["int8", "int4", "none"] | None,
        option("--quant", section="The model", metavar="TYPE", help="how weights are stored: int8 (default), int4, none"),
    ] = None
    keep_blocks: Annotated[
        bool, option("--keep-blocks", section="The model", help="a GGUF file's 4-bit and 8-bit blocks as they are, whatever their size")
    ] = False
    name: Annotated[str | None, option("--name", section="The model", metavar="NAME", help="what to call it (the source's name)")] = None
    allow_config: AllowConfig = None


def execute(options: Options, console: Console) -> int:
    if not options.source.exists():
        raise NotFound(f"no file or folder {str(options.source)!r}", "", "Check the name")
    if options.keep_blocks and options.quant:
        raise UsageError("--keep-blocks and --quant exclude each other", todo="Use one of them")
    from llmcli import acquire

    quant = None if options.keep_blocks else options.quant or "int8"
    with progress(console) as report:
        path = acquire.import_model(options.source, quant, options.name, report, allow=options.allow_config or ())
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
