"""What was typed into chats, kept over sessions: a line of JSON each, in a file that only its owner reads.

Lines are added with one write each, so that several chats may share the file; now and then the oldest go.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from llmcli.weights import atomic

KEPT = 1000
LARGEST = 2**16
"""Bytes of the longest text that is kept: what is longer was hardly typed."""


class History:
    """The file `path`. Raises OSError, DiskError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The texts, oldest first."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        if len(lines) > 2 * KEPT:
            lines = lines[-KEPT:]
            with atomic.replacing(self._path) as descriptor:
                os.fchmod(descriptor, 0o600)
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    file.write(b"\n".join(lines) + b"\n")
        texts = []
        for line in lines[-KEPT:]:
            with suppress(ValueError, RecursionError):  # a line that was cut off
                text = json.loads(line)
                if isinstance(text, str):
                    texts.append(text)
        return texts

    def add(self, text: str) -> None:
        line = json.dumps(text).encode() + b"\n"
        if len(line) > LARGEST:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
