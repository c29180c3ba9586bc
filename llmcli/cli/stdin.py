"""The text a command works on: from a file, from standard input, from its argument, in this order, a line each.

The newline that ends a file or piped text is dropped, as a shell's $(...) does. Standard input that is no terminal is read to
its end when there is no other text. Beside other text it is read when something arrives within `PATIENCE`: a program that
started us may have left a pipe open for ever.
"""

from __future__ import annotations

import os
import select
import stat
import sys

from llmcli.cli.console import Console, is_terminal
from llmcli.cli.options import Text
from llmcli.errors import InputError, UsageError
from llmcli.text.input import decode, read_text

PATIENCE = 2.0
"""Seconds to wait for the first byte of a pipe beside other text."""


def gather(options: Text, console: Console) -> str:
    """The text that the options mean. Raises UsageError when there is none, InputError when it is not valid."""
    parts = []
    if options.file is not None and options.file != "-":
        with open(options.file, "rb") as file:
            parts.append(_without_newline(read_text(file, options.file)))
    beside = bool(parts) or options.text is not None
    if options.file == "-" or (not options.no_stdin and _waits(beside, console)):
        text = _without_newline(read_text(sys.stdin.buffer, "standard input"))
        if text or not beside:
            parts.append(text)
    if options.text is not None:
        parts.append(decode(os.fsencode(options.text), "the argument"))
    if not parts:
        todo = 'Give one as an argument (llm run "Once upon a time"), in a pipe, or with -f FILE'
        raise UsageError("no text", "standard input is a terminal" if is_terminal(sys.stdin) else "", todo)
    text = "\n".join(parts)
    if not text and options.text is None:
        raise InputError("the text is empty", "nothing came from standard input" if options.file in (None, "-") else options.file)
    return text


def nobody_wrote(options: Text) -> bool:
    """Whether there is a person at a terminal, and no text yet."""
    return options.text is None and options.file is None and not options.no_stdin and is_terminal(sys.stdin)


def _waits(beside: bool, console: Console) -> bool:
    """Whether there is text on standard input to read."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return False
    if not beside:
        return True
    kind = os.fstat(sys.stdin.fileno()).st_mode
    # Only a pipe may still bring something; of the rest, what is there is there.
    patience = PATIENCE if stat.S_ISFIFO(kind) else 0.0
    if select.select([sys.stdin], [], [], patience)[0]:
        return True
    if patience:
        console.note(f"nothing came from standard input in {patience:g} s: going on without it (--no-stdin does not wait)")
    return False


def _without_newline(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
