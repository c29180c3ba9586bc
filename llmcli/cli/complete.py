"""What a shell offers at Tab: the words that may come next in a command line, read from the commands' own options.

Nothing is opened and nothing heavy imported: somebody waits with a finger on the key. What it offers goes back into a command line,
so names that a shell would not take as they are are left out.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmcli
from llmcli.cli.app import COMMANDS
from llmcli.cli.console import Console
from llmcli.errors import LlmError

SAFE = re.compile(r"[\w./:@+-]+", re.ASCII)


@dataclass
class Offer:
    """(word, what it is) in order. files: names of files may stand there too."""

    words: list[tuple[str, str]] = field(default_factory=list)
    files: bool = False


def complete(line: str) -> Offer:
    """What may come next; line: a command line up to the cursor, the program's own name included."""
    words = split(line)[1:] or [""]
    *before, last = words
    place = next((i for i, word in enumerate(before) if not word.startswith("-") and before[i - 1 : i] != ["--color"]), None)
    if place is None:
        options = _parameters(None)
        return _option_value(options, before, last) or _starting(last, _flags(options, last) or _commands())
    if before[place] not in COMMANDS:
        return Offer()
    return _of_command(before[place], before[place + 1 :], last)


def split(line: str) -> list[str]:
    """The words as a shell takes them; the last is the one at the cursor, perhaps empty, perhaps in quotes that are still open."""
    for end in ("", '"', "'"):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        return [*words, ""] if not end and line[-1:].isspace() else words
    return []


def _of_command(command: str, before: list[str], last: str) -> Offer:
    parameters = _parameters(command)
    if "--" not in before:
        if offer := _option_value(parameters, before, last):
            return offer
        if last.startswith("-"):
            return _starting(last, _flags(parameters, last))
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    given = _arguments(parameters, before)
    if not arguments or (given >= len(arguments) and arguments[-1].nargs == 1):
        return Offer()
    return _values(arguments[min(given, len(arguments) - 1)], last, command)


def _parameters(command: str | None) -> list[Any]:
    """Typer's parameters of a command; None: what may stand before any command."""
    from llmcli.cli import commands

    return list((commands.command(command, Console()) if command else commands.application()).params)


def _option_value(parameters: list[Any], before: list[str], last: str) -> Offer | None:
    """The values of an option that stands before the cursor (--quant in, --quant=in); None where no value is due."""
    flag, equals, typed = last.partition("=")
    if equals and flag.startswith("--"):
        option = _takes_value(parameters, flag)
        found = _values(option, typed, "") if option else Offer()
        return Offer([(f"{flag}={word}", about) for word, about in found.words], found.files)
    option = _takes_value(parameters, before[-1]) if before else None
    return _values(option, last, "") if option else None


def _takes_value(parameters: list[Any], flag: str) -> Any | None:
    """The option of this flag if it takes a value."""
    return next((p for p in parameters if flag in p.opts and p.param_type_name == "option" and not p.is_flag), None)


def _arguments(parameters: list[Any], before: list[str]) -> int:
    """How many of these words are arguments: neither flags nor values of flags."""
    count, value = 0, False
    for word in before:
        if value or (word.startswith("-") and word != "-"):
            value = not value and _takes_value(parameters, word) is not None
        else:
            count += 1
    return count


def _values(parameter: Any, typed: str, command: str) -> Offer:
    """What an option or argument may be, from its choices or from what the help calls it."""
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return _starting(typed, [(str(choice), "") for choice in choices])
    kind = (parameter.metavar or "").strip("[].")
    if kind in ("NAME", "MODEL") and parameter.name in ("model", "models"):
        offer = _starting(typed, _models(typed, known=command == "pull"))
        offer.files = command not in ("pull", "rm")
        return offer
    if kind == "TOPIC":
        from llmcli.cli.docs import topics

        return _starting(typed, topics().items())
    if parameter.name == "device":
        folder = Path(llmcli.__file__).parent / "backends"
        names = ["auto", *(module.name for module in pkgutil.iter_modules([str(folder)]) if module.ispkg)]
        return _starting(typed, [(name, "") for name in names])
    return Offer(files="FILE" in kind or "DIR" in kind)


def _models(typed: str, known: bool) -> Iterator[tuple[str, str]]:
    """Models that are here, by name; with a quantization where there are several or one is being typed. known: short names too."""
    from llmcli.weights.present import present

    for name, quantizations in present().items():
        if len(quantizations) > 1 or ":" in typed:
            yield from ((f"{name}:{quantization}", "") for quantization in quantizations)
        if ":" not in typed:
            yield name, "here"
    if known:
        from llmcli.weights.aliases import aliases

        try:
            yield from ((name, alias.about) for name, alias in aliases().items() if alias.repository)
        except LlmError:  # a models.toml that is wrong: whoever runs a command is told
            return


def _flags(parameters: list[Any], typed: str) -> list[tuple[str, str]]:
    """Long flags, and short ones where nothing else fits the word."""
    if not typed.startswith("-"):
        return []
    options = [(flag, p.help or "") for p in parameters if p.param_type_name == "option" for flag in p.opts]
    return [(flag, about) for flag, about in [*options, ("--help", "help")] if flag.startswith("--") or typed == flag]


def _commands() -> list[tuple[str, str]]:
    return [(name, about) for name, (_, about) in COMMANDS.items()]


def _starting(typed: str, words: Iterable[tuple[str, str]]) -> Offer:
    return Offer([(word, about) for word, about in dict(words).items() if word.startswith(typed) and SAFE.fullmatch(word)])
