"""Steps of a generation as text, as one JSON object, or as a line of JSON a token. The shapes are in docs/json.md."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llmcli.cli.console import Answer

if TYPE_CHECKING:
    from llmcli.generate import Candidate, Step
    from llmcli.text.thinking import Piece

SCHEMA = 1
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


Thoughts = Literal["hidden", "dim", "tagged"]
"""How thoughts are written: not at all; in dim letters; between <think> and </think>, whatever the model's own markers are."""


class Writer(Protocol):
    """What shows a generation."""

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        """pieces: the step's text, by part; part: of its token."""

    def end(self, summary: dict[str, Any]) -> None:
        """After the last step; summary: as in docs/json.md, without the tokens."""

    def stop(self) -> None:
        """Instead of `end`, after an error or an interrupt."""


class TextWriter:
    """The text itself, as it comes or (stream False) at once, ended by a newline."""

    def __init__(self, answer: Answer, stream: bool, thoughts: Thoughts = "hidden") -> None:
        self._answer = answer
        self._stream = stream
        self._thoughts = thoughts
        self._pieces: list[Piece] = []
        self._thinking = False
        self._marked = False
        self._last = ""

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        if self._stream:
            self._write(pieces)
        else:
            self._pieces += pieces

    def end(self, summary: dict[str, Any]) -> None:
        self.stop()

    def stop(self) -> None:
        """What there is, when nothing more comes."""
        self._write(self._pieces)
        if self._thinking and self._thoughts == "dim":
            self._answer.write_styled(PLAIN)
        if self._last and not self._last.endswith("\n"):
            self._answer.write("\n")

    def _write(self, pieces: list[Piece]) -> None:
        for part, text in pieces:
            if part == "marker":
                self._marked = True
            elif part == "answer" or self._thoughts != "hidden":
                self._enter(part == "thought")
                self._answer.write(text)
                self._last = text

    def _enter(self, thinking: bool) -> None:
        """Empty lines between thoughts and answer, and between thoughts and other thoughts."""
        before, marked = self._thinking, self._marked
        self._thinking, self._marked = thinking, False
        dim = self._thoughts == "dim"
        if thinking and before:
            self._answer.write("\n\n" if marked else "")
        elif thinking:
            self._answer.write("\n\n" if self._last else "")
            self._answer.write_styled(DIM if dim else "<think>\n")
        elif before:
            self._answer.write_styled(f"{PLAIN}\n\n" if dim else "\n</think>\n\n")


class JsonWriter:
    """One object at the end, with a record for each token."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tokens: list[dict[str, Any]] = []

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        self._tokens += token_records(step, part)

    def end(self, summary: dict[str, Any]) -> None:
        self._answer.write(to_line({"schema": SCHEMA, **summary, "tokens": self._tokens}))

    def stop(self) -> None:
        """Half an object is of no use."""


class JsonLinesWriter:
    """A record a token as it is made, then the summary."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def step(self, step: Step, pieces: list[Piece], part: str) -> None:
        for record in token_records(step, part):
            self._answer.write(to_line(record))

    def end(self, summary: dict[str, Any]) -> None:
        self._answer.write(to_line({"type": "summary", "schema": SCHEMA, **summary}))

    def stop(self) -> None:
        """Every line is whole already."""


def token_records(step: Step, part: str) -> list[dict[str, Any]]:
    """The record of a step's token, which is of this part of the text; none for a step that only brings left-over text."""
    if step.id is None:
        return []
    record = {
        "position": step.position,
        "id": step.id,
        "text": step.bytes.decode("utf-8", "replace"),
        "bytes": step.bytes.hex(),
        "part": part,
        "logprob": step.logprob,
        "rank": step.rank,
    }
    names = ("id", "text", "bytes", "logprob", "final_prob", "removed_by")
    if step.top:
        record["top"] = [candidate_record(candidate, names) for candidate in step.top]
    return [record]


def candidate_record(candidate: Candidate, names: Iterable[str]) -> dict[str, Any]:
    """These fields of a candidate, its bytes in hexadecimal."""
    fields = {name: getattr(candidate, name) for name in names}
    return fields | {"bytes": candidate.bytes.hex()}


def to_line(value: Any) -> str:
    """A line of JSON. Numbers that JSON does not have are null."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # rare, and looking at every value first takes longer than writing them
        line = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no UTF-8: Python keeps each as half a character, JSON writes that as \udcff.
    return line.encode("utf-8", "backslashreplace").decode() + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
