"""The bytes of one token, by the decoder that its tokenizer.json describes.

Two families cover almost all models: byte-level BPE, whose tokens are spelled in an alphabet of 256 characters, and
SentencePiece, whose spaces are U+2581 and whose lone bytes are spelled <0x0A>. The few others put a space before each word.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import tokenizers

from llmcli.errors import UnsupportedModel


def decoder_steps(library: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The file's decoder as a flat list of steps; none: words with spaces between, as the library does."""
    if library.decoder is None:
        return [{"type": "WordPiece", "prefix": "\0"}]
    steps = list(flatten(library.decoder))
    for step in steps:
        if step["type"] not in ("ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"):
            raise UnsupportedModel("tokenizer.json", f"its decoder {step['type']} is not supported")
        if step["type"] == "Replace" and "String" not in step["pattern"]:
            raise UnsupportedModel("tokenizer.json", "its decoder replaces by a regular expression")
    return steps


def flatten(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or decoder as the records that the file has for it, sequences flattened."""
    if part is None:
        return
    todo = [json.loads(part.__getstate__())]
    while todo:
        step = todo.pop()
        inner = step.get("normalizers") or step.get("decoders") or []
        todo += reversed(inner)
        if not inner:
            yield step


def strips_start(steps: list[dict[str, Any]]) -> bool:
    for step in steps:
        if step["type"] == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
        if step["type"] == "WordPiece" or (step["type"] == "Strip" and step["content"] == " " and step["start"] > 0):
            return True
    return False


def content_bytes(content: str, steps: list[dict[str, Any]]) -> bytes:
    """The bytes of a token that is spelled `content` in the vocabulary."""
    for step in steps:
        match step["type"]:
            case "ByteLevel":
                return _from_alphabet(content)
            case "ByteFallback":
                byte = _byte(content)
                if byte is not None:
                    return byte
            case "Replace":
                content = content.replace(step["pattern"]["String"], step["content"])
            case "Metaspace":
                content = content.replace(step["replacement"], " ")
            case "WordPiece":
                content = content.removeprefix(step["prefix"]) if content.startswith(step["prefix"]) else f" {content}"
    return content.encode()


def _byte(content: str) -> bytes | None:
    """SentencePiece's spelling of a byte that no piece covers: <0x0A>."""
    if len(content) == 6 and content.startswith("<0x") and content.endswith(">"):
        try:
            return bytes.fromhex(content[3:5])
        except ValueError:
            return None
    return None


@functools.cache
def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet of bytes: printable Latin-1 characters are themselves, the other 68 bytes are U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _from_alphabet(content: str) -> bytes:
    alphabet = _alphabet()
    try:
        return bytes(alphabet[character] for character in content)
    except KeyError:
        return content.encode()
