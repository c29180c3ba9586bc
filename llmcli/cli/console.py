"""The two streams of a command: the answer on standard output, everything else on standard error.

Both know whether they are terminals. What goes to a terminal is filtered (text/escape.py), what goes into a pipe or a file is
not touched; colours only where they are wanted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from llmcli.errors import DiskError, LlmError
from llmcli.text import escape

if TYPE_CHECKING:
    from llmcli.cli.options import Common


class Console:
    """What the common options say, and the way to standard error."""

    def __init__(self, debug: bool = False, color: str = "auto") -> None:
        self.debug = debug
        self.quiet = False
        self.color = color

    def configure(self, options: Common) -> None:
        """Takes over what the common options say, before and after the command."""
        self.debug |= options.debug
        self.quiet |= options.quiet
        self.color = options.color or self.color
        if options.offline:
            os.environ["LLMCLI_OFFLINE"] = "1"

    def colored(self, stream: TextIO) -> bool:
        """Whether colours may go to this stream. They are the only control sequences that we ever write."""
        if self.color in ("always", "never"):
            return self.color == "always"
        return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def note(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Lines that were asked for, so also with -q. A standard error that nobody reads is no reason to stop."""
        _print("\n".join(map(escape.name, text.split("\n"))))

    def error(self, error: LlmError) -> None:
        """The one line of an error."""
        prefix = "\x1b[1;31mllm: error:\x1b[0m" if self.colored(sys.stderr) else "llm: error:"
        _print(f"{prefix} {escape.name(str(error))}")

    def end_line(self) -> None:
        """After ^C the terminal's cursor stands behind it."""
        if is_terminal(sys.stderr):
            with contextlib.suppress(OSError):
                print(file=sys.stderr, flush=True)


def _print(text: str) -> None:
    """To standard error. (To print, None is standard output.)"""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


class Answer:
    """Where the answer goes, in UTF-8 whatever the locale says."""

    def __init__(self, stream: BinaryIO, terminal: bool = False, name: str = "standard output") -> None:
        self._stream = stream
        self._name = name
        self.terminal = terminal
        self._escape = escape.Escape() if terminal else None

    def write(self, text: str) -> None:
        """Sends text on at once; for a terminal, filtered."""
        self.write_styled(self._escape.feed(text) if self._escape else text)

    def write_styled(self, text: str) -> None:
        """Sends text that holds nothing of strangers, or only filtered, and perhaps colours. Raises DiskError, BrokenPipeError."""
        if text:
            with _disk_errors(self._name):
                self._stream.write(text.encode("utf-8", "surrogateescape"))
                self._stream.flush()

    def finish(self) -> None:
        """Sends what the filter still holds."""
        if self._escape:
            self.write_styled(self._escape.finish())


@contextlib.contextmanager
def open_answer(path: Path | None = None) -> Iterator[Answer]:
    """Standard output or, with a path, a file that appears whole or not at all. Raises DiskError when it cannot be opened."""
    if path is not None and not _is_device(path):
        with _whole_file(path) as file:
            yield Answer(file, name=str(path))
    elif path is not None:
        with _disk_errors(path), path.open("wb") as file:
            yield Answer(file, name=str(path))
    elif sys.stdout is None:
        raise DiskError("standard output", "it is closed", "Open it, or use -o FILE")
    else:
        answer = Answer(sys.stdout.buffer, is_terminal(sys.stdout))
        yield answer
        answer.finish()


def is_terminal(stream: TextIO | None) -> bool:
    """False also for a stream that is closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _is_device(path: Path) -> bool:
    """Such as /dev/null: to be written to, not replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    # The name is chosen before the file is made, so that an interrupt in between leaves nothing behind.
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.is_dir():
        raise DiskError(f"cannot write {path}", "it is a folder", "Choose another name")
    part = target.parent / f".{os.urandom(8).hex()}.part"
    try:
        with _disk_errors(path):
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _disk_errors(where: Path | str) -> Iterator[None]:
    """Errors of the system while `where` is written, as DiskError. A closed pipe is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DiskError(f"cannot write {where}", error.strerror or str(error), "Choose another place") from error
