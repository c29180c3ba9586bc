"""`llm import DIR` or FILE.gguf: a folder in the Hub's layout, or a GGUF file, becomes a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import AllowConfig, Common, option
from llmcli.cli.progress import progress
from llmcli.errors import NotFound

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
        Literal["int8", "int4", "none"],
        option("--quant", section="The model", metavar="TYPE", help="how weights are stored: int8 (default), int4, none"),
    ] = "int8"
    name: Annotated[str | None, option("--name", section="The model", metavar="NAME", help="what to call it (the source's name)")] = None
    allow_config: AllowConfig = None


def execute(options: Options, console: Console) -> int:
    if not options.source.exists():
        raise NotFound(f"no file or folder {str(options.source)!r}", "", "Check the name")
    from llmcli import acquire

    with progress(console) as report:
        path = acquire.import_model(options.source, options.quant, options.name, report, allow=options.allow_config or ())
    with open_answer() as answer:
        answer.write(f"{path}\n")
    return 0
