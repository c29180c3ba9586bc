"""The command `llm`: a table of commands, and the one place where an error becomes a line and an exit code.

A command is a module with `configure(parser)` and `execute(arguments, console)`; it is imported when it is called. The table
has the help lines, so `llm --help` imports none. To add a command: one file, one row.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import llmcli
from llmcli.cli.console import Console
from llmcli.errors import UsageError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("llmcli.cli.run", "Continue a text, or answer a question"),
    "next": ("llmcli.cli.next", "Show how likely each next token is"),
    "import": ("llmcli.cli.importing", "Make a model from a folder of weights"),
    "list": ("llmcli.cli.list", "List the models that are here"),
    "show": ("llmcli.cli.show", "Say what a model is"),
    "rm": ("llmcli.cli.rm", "Remove a model"),
    "warmup": ("llmcli.cli.warmup", "Compile the kernels ahead of the first run"),
}

OVERVIEW = """usage: llm COMMAND ...

Language models on your own machine, with the probability of every token.

commands:
{commands}

options, before or after the command:
  -q, --quiet           no notes on standard error
  --color WHEN          auto, always or never (also: NO_COLOR)
  --debug               a traceback with an error
  --offline             never use the network
  -h, --help            help, also of a command: llm run --help
  --version             the version

  llm run "Once upon a time"
  llm next "The cat sat on the"
"""


class Terminated(BaseException):
    """SIGTERM, as an exception, so that open files are put right on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code. Raises nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(debug="--debug" in words)
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
    command, words = _split(words)
    if command is None:
        if "--version" in words:
            print(f"llm {llmcli.__version__}")
        else:
            print(OVERVIEW.format(commands="\n".join(f"  {name:<21} {line}" for name, (_, line) in COMMANDS.items())), end="")
        return 0
    if command not in COMMANDS:
        _unknown(command)
    from llmcli.cli.parser import Parser

    name, line = COMMANDS[command]
    module = importlib.import_module(name)
    parser = Parser(f"llm {command}", line)
    module.configure(parser)
    parser.complete()
    try:
        options = parser.parse_args(words)
    except SystemExit as done:  # --help
        return int(done.code or 0)
    console.configure(options)
    if options.offline:
        os.environ["LLMCLI_OFFLINE"] = "1"
    return module.execute(options, console) or 0


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """(command, its arguments). Options before the command are for everybody and move behind it."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] == "--color" else 1
    before = words[:index]
    if index >= len(words) or "--help" in before or "-h" in before or "--version" in before:
        known = ("-h", "--help", "--version", "-q", "--quiet", "--debug", "--offline", "--color")
        strange = next((word for word in before if word.startswith("-") and word.split("=")[0] not in known), None)
        if strange is not None:
            raise UsageError(f"no option {strange} before a command")
        return None, before
    return words[index], before + words[index + 1 :]


def _unknown(command: str) -> NoReturn:
    if " " in command:
        raise UsageError(f"no command {command!r}", todo='To continue a text: llm run "TEXT"')
    near = difflib.get_close_matches(command, COMMANDS, n=3)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"no command {command!r}", todo=f"{guess}See llm --help")


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
    raise Terminated
