"""A conversation as a file, which appears whole or not at all and is its owner's to read alone. The JSON is in docs/json.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.chat import Message, check
from llmcli.errors import InputError, NotFound, UsageError
from llmcli.text.input import read_text
from llmcli.weights import atomic

SCHEMA = 1


@dataclass(frozen=True)
class Saved:
    model: str
    messages: list[Message]
    settings: Mapping[str, Any]
    """What was chosen of sampling's settings, by the names of sampling/settings.py. Of a file, not checked."""


def write(path: Path, conversation: Saved) -> None:
    """Raises DiskError."""
    record = {"schema": SCHEMA, "model": conversation.model, "messages": conversation.messages, "settings": conversation.settings}
    data = (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
    with atomic.replacing(Path(os.path.realpath(path)), len(data)) as descriptor:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)


def read(path: Path) -> Saved:
    """Raises NotFound, InputError for what is no conversation, UsageError for one of another schema."""
    try:
        with path.open("rb") as file:
            text = read_text(file, str(path))
    except OSError as error:
        raise NotFound(str(path), error.strerror or str(error), "Check the name") from error
    try:
        record = json.loads(text)
        if record["schema"] != SCHEMA:
            raise UsageError(str(path), f"its schema is {str(record['schema'])[:20]}, not {SCHEMA}", "Use the llm that wrote it")
        messages = [_message(item) for item in record["messages"]]
        check(messages)
        return Saved(str(record.get("model", "")), messages, dict(record.get("settings", {})))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(str(path), "it is no saved conversation", "docs/json.md says what one looks like") from error


def _message(item: Any) -> Message:
    found = {name: item[name] for name in ("role", "content", "reasoning_content") if name in item}
    if not isinstance(found["role"], str) or not all(isinstance(text, str) for text in found.values()) or "content" not in found:
        raise TypeError
    return found
