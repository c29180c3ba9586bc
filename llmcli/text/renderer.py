"""The process that runs chat templates, and nothing else: `template.py` starts it, sends requests, and gets texts back.

A template is a program of a stranger. Jinja's sandbox keeps it from files and attributes, but not from endless loops or
gigabytes; the system's limits on this process do, inside a single C call too. The environment is the one that templates are
written for (that of `transformers`), closed up: immutable and without a loader.

This file imports the standard library and jinja2 alone, because its start is waited for.
    request   8 bytes: length; JSON {template, now, variables}; without variables it is only compiled, and nothing comes back
    reply     1 byte: TEXT, REFUSED or FAILED; 8 bytes: length; UTF-8
"""

from __future__ import annotations

import contextlib
import encodings.ascii
import encodings.unicode_escape
import functools
import json
import pprint
import resource
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.constants
import jinja2.debug
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

TEXT, REFUSED, FAILED = b"t", b"r", b"f"

MEMORY = 256 << 20
"""Bytes that a request may take, beside MEMORY_PER_BYTE for each byte of it."""
MEMORY_PER_BYTE = 32
OUTPUT = 1 << 20
"""Characters of text that may come of a request, beside OUTPUT_PER_BYTE for each byte of it."""
OUTPUT_PER_BYTE = 4

LATE = (encodings.ascii, encodings.unicode_escape, pprint, jinja2.constants, jinja2.debug)
"""What Python and Jinja import only when a template needs it. A confined process opens no more files."""


class Refused(Exception):
    """The template itself says that it does not take this conversation."""


def main(seconds: float) -> None:
    """Answers requests from standard input until it is closed. seconds: processor time that each may take."""
    start = _confine()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while len(header := requests.read(8)) == 8:
        data = requests.read(int.from_bytes(header))
        _limit(start, len(data), seconds)
        reply = _answer(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if reply is not None:
            _send(replies, *reply)


def _answer(data: bytes) -> tuple[bytes, bytes] | None:
    request = json.loads(data)
    variables = request.get("variables")
    try:
        if variables is None:
            with contextlib.suppress(Exception):  # the request that renders it will say what is wrong
                _compile(request["template"])
            return None
        text = render(request["template"], variables, datetime.fromisoformat(request["now"]))
        most = OUTPUT + OUTPUT_PER_BYTE * len(data)
        if len(text) > most:
            return FAILED, f"it makes a text of {len(text):,} characters, more than {most:,}".encode()
        return TEXT, text.encode("utf-8", "surrogatepass")
    except Refused as error:
        return REFUSED, _line(error)
    except MemoryError:
        return FAILED, f"it needs more than {MEMORY >> 20} MiB of memory".encode()
    except Exception as error:
        return FAILED, _line(error)


def _line(error: Exception) -> bytes:
    return (" ".join(str(error)[:10_000].split())[:300] or type(error).__name__).encode("utf-8", "replace")


def _send(replies: BinaryIO, kind: bytes, data: bytes) -> None:
    replies.write(kind + len(data).to_bytes(8))
    replies.write(data)
    replies.flush()


def _confine() -> int:
    """Takes from this process what it does not need. Returns the bytes of addresses that it has now."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that waits
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    size = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (0, 0))
    return size


def _limit(start: int, request: int, seconds: float) -> None:
    """Ends the process when this request takes more time, and makes it fail when it takes more memory. The timer's signal has its
    default action, so that no code of ours or of a template has to run for it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    most = start + MEMORY + MEMORY_PER_BYTE * request
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def render(template: str, variables: dict[str, Any], now: datetime) -> str:
    """What the template makes of the variables; now: local time, for strftime_now. Raises Refused, and whatever Jinja raises."""
    program = _compile(template)
    return program.render(**variables, strftime_now=now.strftime)


@functools.lru_cache(maxsize=4)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "dict": _Dict(), "namespace": _Namespace}
    return environment.from_string(template)


def _to_json(value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise Refused(message)


class _Dict:
    """`dict`, without the attributes of a class."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(jinja2.utils.Namespace):
    """`namespace`, whose names have no underscore in front."""

    def __init__(*values: Any, **named: Any) -> None:
        # Not called self, as in Jinja: a template may have a name self.
        own, *rest = values
        found = dict(*rest, **named)
        for name in found:
            _check_name(name)
        jinja2.utils.Namespace.__init__(own, found)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name[:40]!r} of a namespace begins with an underscore")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is just rendered, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Any) -> Any:
        return caller()
