"""The reader of a command's words: argparse, with our errors and the options that every command has.

Typer reads words as well, but reading them takes it 0.2 s (it imports pydantic for that), as long as all else until the first
token; argparse takes 0.01 s.
"""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from llmcli.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Options are never abbreviated: a new option must not change what an old script means."""

    def __init__(self, program: str, line: str) -> None:
        super().__init__(prog=program, description=f"{line}.", allow_abbrev=False, add_help=False, formatter_class=_Format)

    def complete(self) -> None:
        """Adds the options of every command, last in the help, and the usage line."""
        words = [str(action.metavar) if action.required else f"[{action.metavar}]" for action in self._get_positional_actions()]
        self.usage = " ".join([self.prog, *words, "[OPTIONS]"])
        group = self.add_argument_group("for every command")
        group.add_argument("-q", "--quiet", action="store_true", help="no notes on standard error")
        group.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (also: NO_COLOR)")
        group.add_argument("--debug", action="store_true", help="a traceback with an error")
        group.add_argument("--offline", action="store_true", help="never use the network")
        group.add_argument("-h", "--help", action="help", help="this help")

    def parse_args(self, words: Any = None, namespace: Any = None) -> Any:
        """Raises UsageError with near matches for words that mean nothing here."""
        options, strange = self.parse_known_args(words, namespace)
        if strange:
            self._strange(strange[0])
        return options

    def _strange(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            raise UsageError(f"unexpected argument {word!r}", "a text of several words needs quotes", f"See {self.prog} --help")
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(word.split("=")[0], flags, n=3, cutoff=0.7)
        guess = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"no option {word.split('=')[0]}", todo=f"{guess}See {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """argparse's own keeps quiet about a standard output that is full or closed."""
        print(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        what, _, why = message.removeprefix("argument ").partition(": ")
        raise UsageError(what, why, f"See {self.prog} --help")


class _Format(argparse.HelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=30, **options)
