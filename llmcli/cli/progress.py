"""Progress on standard error: a bar on a terminal, else a line now and then. Nothing with -q."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from llmcli.cli.console import Console, is_terminal
from llmcli.text import escape

Report = Callable[[str, int, int], None]
"""(what, done, total)."""


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A function to report to."""
    if console.quiet:
        yield lambda what, done, total: None
    elif is_terminal(sys.stderr):
        with _bar(console) as report:
            yield report
    else:
        yield _Lines(console)


class _Lines:
    """A line at the beginning and at each quarter: enough for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._quarter = -1

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if quarter != self._quarter:
            self._quarter = quarter
            self._console.note(f"{25 * quarter:3d}%  {what}")


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Report]:
    from rich.console import Console as Rich
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    rich = Rich(stderr=True, no_color=not console.colored(sys.stderr), highlight=False)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=rich, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=escape.name(what), completed=done, total=total)
