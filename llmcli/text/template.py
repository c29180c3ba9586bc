"""Chat templates: the model's own Jinja program turns messages into the text that it was trained on.

The program runs in a process of its own (`renderer.py`), with limits on time and memory that the system keeps. It is started while
weights are read (`prepare`), so nobody waits for it, and it stays for the next turn.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.errors import InputError, TemplateError
from llmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import subprocess

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | ..., "content": text or a list of parts}."""

SECONDS = 2.0
"""Processor time of one request."""
LONGEST_WAIT = 60.0
"""Seconds until a process is given up that neither answers nor uses its processor time, on a machine that is stopped or swaps."""
LARGEST_AHEAD = 48 << 10
"""Bytes that a pipe takes before anybody reads."""
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates look for an answer's thoughts; the first is the usual one."""


def encode_chat(tokenizer: Tokenizer, template: str, messages: Sequence[Message], **variables: Any) -> list[int]:
    """The tokens of a conversation, ready for the answer. Markup in texts that are not the model's own stays plain text.

    Raises TemplateError, InputError.
    """
    rendered, mark = render_marked(tokenizer, template, messages, **variables)
    return encode_marked(tokenizer, rendered, mark)


def render_marked(tokenizer: Tokenizer, template: str, messages: Sequence[Message], **variables: Any) -> tuple[str, str]:
    """The text of a conversation, and a character in it that stands in everything that only imitates markup."""
    mark = _unused_character(messages)
    markup = sorted(tokenizer.markup(), key=len, reverse=True)
    texts = [message if message.get("role") == "assistant" else _break_markup(message, markup, mark) for message in messages]
    named: dict[str, Any] = {**tokenizer.roles, **variables}
    return render(template, texts, **named), mark


def encode_marked(tokenizer: Tokenizer, rendered: str, mark: str) -> list[int]:
    """The tokens of such a text. Usually one part: only text that imitates markup has marks."""
    return [number for part in rendered.split(mark) for number in tokenizer.encode(part, special=True, bos=False)]


def render(template: str, messages: Sequence[Message], now: datetime.datetime | None = None, **variables: Any) -> str:
    """What the template makes of the messages, with the opening of an answer; now: local time. Raises TemplateError."""
    known = {"add_generation_prompt": True, "tools": None, "documents": None}
    data = {
        "template": template,
        "now": (now or datetime.datetime.now()).isoformat(),
        "variables": {"messages": [_complete(message) for message in messages], **known, **variables},
    }
    return _process.ask(data)


def prepare(template: str) -> None:
    """Starts the process that will render this template, and has it compiled there. Returns at once."""
    _process.prepare({"template": template})


def end() -> None:
    """Ends the process, until it is needed again."""
    _process.end()


def turn_end(tokenizer: Tokenizer, template: str) -> int | None:
    """The control token that the template writes right behind an assistant's words, where it writes one: what a model says at
    the end of an answer, also where its configuration does not tell."""
    words = "mnrtsv"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}, {"role": "user", "content": "b"}]
    try:
        options: dict[str, Any] = {**tokenizer.roles, "add_generation_prompt": False}
        rendered = render(template, turns, **options)
    except TemplateError:
        return None
    _, found, behind = rendered.rpartition(words)
    ids = tokenizer.encode(behind.lstrip(), special=True, bos=False) if found else []
    return ids[0] if ids and ids[0] in tokenizer.control else None


class _Process:
    """The one process, started when it is needed and again when it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def prepare(self, data: dict[str, Any]) -> None:
        request = _framed(data)
        with self._lock:
            child = self._started()
            if len(request) <= LARGEST_AHEAD:
                with contextlib.suppress(OSError):
                    _write(child, request)

    def ask(self, data: dict[str, Any]) -> str:
        request = _framed(data)
        with self._lock:
            child = self._started()
            timer = threading.Timer(LONGEST_WAIT, child.kill)
            timer.start()
            try:
                kind, text = _exchange(child, request)
            except (OSError, EOFError):
                self._end(seconds=1)
                raise TemplateError("the model's chat template failed", _why_ended(child.returncode)) from None
            except BaseException:  # its answer would be taken for the next one
                self._end()
                raise
            finally:
                timer.cancel()
        if kind == b"t":  # the kinds of renderer.py, which is not imported because it imports Jinja
            return text
        what = "refuses this conversation" if kind == b"r" else "failed"
        raise TemplateError(f"the model's chat template {what}", text)

    def end(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = _start()
        return self._child

    def _end(self, seconds: float = 0) -> None:
        """seconds: how long it may take to end by itself."""
        import subprocess

        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


_process = _Process()
atexit.register(_process.end)


def _start() -> subprocess.Popen[bytes]:
    """Nothing of the user's environment goes along: no token, no setting that would change how Python starts."""
    import importlib.util
    import subprocess

    own = Path(__file__).parents[2]
    found = importlib.util.find_spec("jinja2"), importlib.util.find_spec("markupsafe")
    paths = [str(own), *(str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin)]
    code = "import sys; sys.path += sys.argv[2:]; from llmcli.text.renderer import main; main(float(sys.argv[1]))"
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    # A process group of its own: Ctrl-C in a terminal is sent to the whole group of the command.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(SECONDS), *dict.fromkeys(paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=kept,
        process_group=0,
    )


def _framed(data: dict[str, Any]) -> bytes:
    body = json.dumps(data, default=str).encode()
    return len(body).to_bytes(8) + body


def _write(child: subprocess.Popen[bytes], request: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(request)
    child.stdin.flush()


def _exchange(child: subprocess.Popen[bytes], request: bytes) -> tuple[bytes, str]:
    assert child.stdout is not None
    _write(child, request)
    header = child.stdout.read(9)
    size = int.from_bytes(header[1:])
    data = child.stdout.read(size) if len(header) == 9 else b""
    if len(header) < 9 or len(data) < size:
        raise EOFError
    return header[:1], data.decode("utf-8", "surrogatepass")


def _why_ended(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return f"it takes more than {SECONDS:g} seconds"
    return f"the process that renders it was ended (status {status}): it takes too much memory, or is nested too deeply"


def _complete(message: Message) -> dict[str, Any]:
    """The message without fields that are None, its thoughts under every name that templates use for them."""
    found = {name: value for name, value in message.items() if value is not None}
    thoughts = next((found[name] for name in _THOUGHTS if name in found), None)
    return found if thoughts is None else {"thinking": thoughts, **found, "reasoning_content": thoughts}


def _unused_character(messages: Sequence[Message]) -> str:
    """A character that Unicode reserves for a program's own use and that no message has."""
    text = json.dumps([dict(message) for message in messages], ensure_ascii=False, default=str)
    free = [chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in text]
    if not free:
        raise InputError("the conversation cannot be encoded", "it has all 32 noncharacters of Unicode", "Remove U+FDD0 to U+FDEF")
    return free[0]


def _break_markup(value: Any, markup: Sequence[str], mark: str) -> Any:
    """The message with a mark inside everything that reads like a control token; markup: the longest first."""
    if isinstance(value, str):
        for token in markup:
            while len(token) > 1 and token in value:
                value = value.replace(token, token[0] + mark + token[1:])
        return value
    if isinstance(value, Mapping):
        return {name: _break_markup(item, markup, mark) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_break_markup(item, markup, mark) for item in value]
    return value
