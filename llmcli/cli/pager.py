"""Long texts on a terminal: Markdown laid out in columns, and a program to scroll in."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress

WIDEST = 100
"""Columns: longer lines are hard to read."""


def layout(markdown: str, colored: bool) -> str:
    """Markdown as lines for a terminal, with its colours or without."""
    from rich.console import Console
    from rich.markdown import Markdown

    columns = min(shutil.get_terminal_size().columns, WIDEST)
    console = Console(
        file=io.StringIO(), width=columns, force_terminal=colored, color_system="standard" if colored else None, no_color=not colored
    )
    local = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", markdown)  # links to files lead nowhere here
    console.print(Markdown(local, hyperlinks=False))
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def page(text: str) -> bool:
    """Shows the text in $PAGER, else in less; what fits a screen is not paged. False where there is no such program."""
    command = shlex.split(os.environ.get("PAGER") or "less")
    if not command or shutil.which(command[0]) is None:
        return False
    # -F: not for less than a screen, -R: colours, -X: the text stays on the screen.
    settings = {"LESS": "-FRX", "LESSCHARSET": "utf-8", **os.environ}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pager's
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=settings)
        with suppress(BrokenPipeError):  # left before the end
            process.communicate(text.encode())
        process.wait()
    except OSError:
        return False
    finally:
        signal.signal(signal.SIGINT, before)
    return True
