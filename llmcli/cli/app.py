"""The command `llm`: a table of commands, and the one place where an error becomes a line and an exit code.

The table has the help lines, so `llm --help` imports no command. To add one: a file (commands.py says what is in it), a row.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from llmcli.cli.console import Console
from llmcli.errors import OutOfMemory

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("llmcli.cli.run", "Continue a text, or answer a question"),
    "chat": ("llmcli.cli.chat", "Talk with a model"),
    "next": ("llmcli.cli.next", "Show how likely each next token is"),
    "score": ("llmcli.cli.score", "Show how likely a given text is, token by token"),
    "diff": ("llmcli.cli.diff", "Show where two models disagree on a text"),
    "eval": ("llmcli.cli.evaluate", "Measure perplexity or the share of right answers"),
    "explore": ("llmcli.cli.explore", "Walk through what a model might say"),
    "attend": ("llmcli.cli.attend", "Show where attention looks in a text"),
    "lens": ("llmcli.cli.lens", "Show what each layer would have predicted"),
    "tokenize": ("llmcli.cli.tokenize", "Show the tokens of a text"),
    "models": ("llmcli.cli.models", "List well-known models by short name"),
    "import": ("llmcli.cli.importing", "Make a model from a folder of weights"),
    "pull": ("llmcli.cli.pull", "Get a model from a hub"),
    "quantize": ("llmcli.cli.quantize", "Make a smaller model of one that is here"),
    "list": ("llmcli.cli.list", "List the models that are here"),
    "show": ("llmcli.cli.show", "Say what a model is"),
    "use": ("llmcli.cli.use", "Choose the model for commands without -m"),
    "verify": ("llmcli.cli.verify", "Check that models are whole"),
    "rm": ("llmcli.cli.rm", "Remove a model"),
    "clean": ("llmcli.cli.clean", "Remove unfinished downloads and old kernels"),
    "bench": ("llmcli.cli.bench", "Measure how fast a model runs here"),
    "warmup": ("llmcli.cli.warmup", "Compile the kernels ahead of the first run"),
    "doctor": ("llmcli.cli.doctor", "Check this machine and installation"),
    "docs": ("llmcli.cli.docs", "Read the documentation"),
    "completion": ("llmcli.cli.completion", "Make a shell complete what you type"),
}

OVERVIEW = """Usage: llm COMMAND ...

Language models on your own machine, with the probability of every token.

Commands:
{commands}

Options, before or after the command:
  -q, --quiet           no notes on standard error
  --color WHEN          auto, always or never (also: NO_COLOR)
  --debug               a traceback with an error
  --offline             never use the network
  -h, --help            help, also of a command: llm run --help
  --version             the version

  llm run "Once upon a time"
  llm next "The cat sat on the"
"""


USUAL, STARTING = gc.get_threshold(), 100_000
"""When Python looks for rings of garbage: as ever, and after how many new objects while a command starts."""


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that open files are put right on the way out. A SystemExit, because asyncio, in which the chat's editor
    runs, keeps every other one that comes in one of its callbacks to itself."""


def command() -> NoReturn:
    """The whole process: `main`, and then its end, without taking everything apart that the system takes back anyway: a tokenizer's
    vocabulary alone is a hundred thousand strings."""
    # Importing and reading a model make many objects that stay. Looking through them again and again for rings of garbage takes 10 ms.
    gc.set_threshold(STARTING)
    code = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def started() -> None:
    """A model is loaded: garbage is looked for as ever, but among what is new. An answer that is drawn leaves a megabyte of it."""
    if gc.get_threshold()[0] == STARTING:
        gc.freeze()
        gc.set_threshold(*USUAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code. Raises nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(debug="--debug" in words, color=_color(words))
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run(words, console)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaseException as error:
        return report(error, console)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str], console: Console) -> int:
    import typer

    from llmcli.cli.commands import read

    try:
        call = read(words, console)
    except typer.Exit as done:  # help
        return done.exit_code
    return 0 if call is None else call()


def _color(words: list[str]) -> str:
    """What --color says, for errors in the words themselves."""
    for word, following in itertools.pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name == "--color":
            return value or following
    return "auto"


def report(error: BaseException, console: Console) -> int:
    """Says on standard error what went wrong and returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        # Whoever presses Ctrl-C again while we are leaving means it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        console.end_line()
        return 130
    if isinstance(error, Terminated):
        return 143
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return 141
    if console.debug:
        import traceback

        traceback.print_exception(error)
    from llmcli.cli.failures import as_llm_error

    known = as_llm_error(error)
    if isinstance(known, OutOfMemory) and known.instead:
        from llmcli.cli.table import table

        console.note(f"llm: what would fit:\n{table(known.instead)}".rstrip())
    console.error(known)
    _close_stdout()
    return known.code


def _close_stdout() -> None:
    """What is still buffered cannot be written: without this, Python tries again at its end and prints a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(143)
