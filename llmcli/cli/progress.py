"""Progress on standard error: a bar on a terminal that may have colours, else a line now and then. Nothing with -q."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from llmcli.cli.console import Console, is_terminal
from llmcli.cli.units import size
from llmcli.text import escape

Report = Callable[[str, int, int], None]
"""(what, done, total)."""


@contextlib.contextmanager
def progress(console: Console, bytes: bool = False) -> Iterator[Report]:
    """A function to report to. bytes: what is counted, so that a speed means something."""
    if console.quiet:
        yield lambda what, done, total: None
    elif is_terminal(sys.stderr) and console.colored(sys.stderr):  # who wants no colours wants no codes
        with _bar(console, bytes) as report:
            yield report
    else:
        yield _Lines(console, bytes)


class _Lines:
    """A line at the beginning and at each quarter: enough for a log."""

    def __init__(self, console: Console, bytes: bool) -> None:
        self._console, self._bytes = console, bytes
        self._quarter = -1
        self._start: tuple[float, int] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if quarter != self._quarter:
            self._quarter = quarter
            self._console.note(f"{25 * quarter:3d}%  {what}{self._speed(done, total)}")

    def _speed(self, done: int, total: int) -> str:
        """Since the first report, at which a part may have been there."""
        if not self._bytes or self._start is None:
            self._start = time.monotonic(), done
            return ""
        seconds, count = time.monotonic() - self._start[0], done - self._start[1]
        if seconds <= 0 or count <= 0:
            return ""
        left = f", {(total - done) * seconds / count:,.0f} s left" if done < total else ""
        return f"  {size(count / seconds)}/s{left}"


@contextlib.contextmanager
def _bar(console: Console, bytes: bool) -> Iterator[Report]:
    from rich.console import Console as Rich
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    rich = Rich(stderr=True, highlight=False)
    speed = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if bytes else ()
    columns = (BarColumn(), TaskProgressColumn(), *speed, TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=rich, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=escape.name(what), completed=done, total=total)
