"""The table of commands as a Typer application that only reads: it turns words into a call, and `app.py` makes the call.

A command is a module with `ABOUT` and `EXAMPLE` for its help (help.py), `Options`, a dataclass whose annotations are Typer's, and
`execute(options, console)`. Options that several commands share are dataclasses to inherit from (options.py); in the help, a class is
a section.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
import typer.core
import typer.main

import llmcli
from llmcli.cli.app import COMMANDS, OVERVIEW
from llmcli.cli.console import Console
from llmcli.cli.help import Command
from llmcli.cli.options import Common, option
from llmcli.errors import UsageError

Call = Callable[[], int]
HELP = {"help_option_names": ["-h", "--help"]}


def read(words: list[str], console: Console) -> Call | None:
    """The call that the words mean; None after help. Raises UsageError; typer.Exit where Typer itself has answered."""
    if words[:1] == ["help"]:  # as other programs have it
        words = [*words[1:], "--help"]
    try:
        with application().make_context("llm", words, obj=console) as context:
            found: Call | None = context.command.invoke(context)
            return found
    except typer.TyperException as error:
        raise _usage(error) from error


def application() -> Any:
    """All commands as Typer's object."""
    app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, context_settings=HELP)
    app.callback(invoke_without_command=True)(_function(_overall, Overall, first="context"))
    return typer.main.get_command(app)


@dataclass(frozen=True, kw_only=True)
class Overall(Common):
    version: Annotated[bool, option("--version", help="the version")] = False


def _overall(context: typer.Context, **values: Any) -> None:
    options = Overall(**values)
    context.obj.configure(options)
    if options.version:
        typer.echo(f"llm {llmcli.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Commands(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports the command's module: only now, so that nobody waits for another command."""
        if cmd_name not in COMMANDS:
            raise _unknown(cmd_name)
        return command(cmd_name, ctx.obj)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        lines = "\n".join(f"  {name:<21} {line}" for name, (_, line) in COMMANDS.items())
        formatter.write(OVERVIEW.format(commands=lines))


def command(name: str, console: Console) -> Any:
    """The command as Typer's object; invoked, it returns the call."""
    module_name, line = COMMANDS[name]
    module = importlib.import_module(module_name)

    def call(**values: Any) -> Call:
        options = module.Options(**values)
        console.configure(options)
        return functools.partial(module.execute, options, console)

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {**HELP, "allow_extra_args": True}
    app.command(name, help=f"{line}.", cls=Command, context_settings=settings)(_function(call, module.Options))
    made: Any = typer.main.get_command(app)
    made.module = module
    return made


def _function(function: Callable[..., Any], options: type, first: str = "") -> Callable[..., Any]:
    """The function, with the fields of `options` as its parameters in Typer's eyes."""
    before = [inspect.Parameter(first, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)] if first else []
    function.__signature__ = inspect.Signature([*before, *_parameters(options)])  # type: ignore[attr-defined]
    return function


def _parameters(options: type) -> Iterator[inspect.Parameter]:
    """A parameter for each field: the class's own first, then those of the classes it inherits from, in the order it names them."""
    hints = get_type_hints(options, include_extras=True)
    for kind in options.__mro__:
        for name in inspect.get_annotations(kind):
            default = getattr(options, name, inspect.Parameter.empty)
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])


def _unknown(name: str) -> UsageError:
    if " " in name:
        return UsageError(f"no command {name!r}", todo='To continue a text: llm run "TEXT"')
    near = difflib.get_close_matches(name, COMMANDS, n=3)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    return UsageError(f"no command {name!r}", todo=f"{guess}See llm --help")


def _usage(error: typer.TyperException) -> UsageError:
    """Typer's complaint as ours. Its options that come near are in it."""
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(message[:1].lower() + message[1:], todo=f"See {context.command_path if context else 'llm'} --help")
