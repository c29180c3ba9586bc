"""Chat templates: the model's own Jinja program turns messages into the text that it was trained on.

The environment is the one that templates are written for (that of `transformers`), closed up: sandboxed and immutable, no
loader, so no template reads a file, imports or changes anything.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llmcli.errors import InputError, TemplateError
from llmcli.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | ..., "content": text}."""


def encode_chat(tokenizer: Tokenizer, template: str, messages: Sequence[Message], **variables: Any) -> list[int]:
    """The tokens of a conversation, ready for the answer. Markup in texts that are not the model's own stays plain text.

    Raises TemplateError, InputError.
    """
    mark = _unused_character(messages)
    texts = [message if message["role"] == "assistant" else _break_markup(message, tokenizer.markup(), mark) for message in messages]
    rendered = render(template, texts, bos_token=tokenizer.bos or "", eos_token=tokenizer.eos or "", **variables)
    # Usually one part: only text that imitates markup has marks.
    return [number for part in rendered.split(mark) for number in tokenizer.encode(part, special=True, bos=False)]


def render(template: str, messages: Sequence[Message], **variables: Any) -> str:
    """What the template makes of the messages, with the opening of an answer. Raises TemplateError."""
    try:
        program = _environment().from_string(template)
        return program.render(messages=list(messages), **{"add_generation_prompt": True, "tools": None, "documents": None, **variables})
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError("the model's chat template failed", " ".join(str(error).split())[:300] or type(error).__name__) from error


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes for HTML."""
    known = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)


def _raise(message: str) -> NoReturn:
    raise TemplateError("the model's chat template refuses this conversation", str(message))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is just rendered."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _unused_character(messages: Sequence[Message]) -> str:
    """A character that Unicode reserves for a program's own use and that no message has."""
    text = json.dumps([dict(message) for message in messages], ensure_ascii=False, default=str)
    free = [chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in text]
    if not free:
        raise InputError("the conversation cannot be encoded", "it has all 32 noncharacters of Unicode", "Remove U+FDD0 to U+FDEF")
    return free[0]


def _break_markup(message: Message, markup: Sequence[str], mark: str) -> Message:
    """The message with a mark inside everything that reads like a control token."""
    content = message["content"]
    for token in sorted(markup, key=len, reverse=True):
        while len(token) > 1 and token in content:
            content = content.replace(token, token[0] + mark + token[1:])
    return {**message, "content": content}
