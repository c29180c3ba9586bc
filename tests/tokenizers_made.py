"""Small tokenizers of each family, made here: tests need no downloaded file."""

from __future__ import annotations

import json
from typing import Any

from llmcli.text.decoding import _alphabet

CONTROL = ["<unk>", "<s>", "</s>", "<|user|>"]


def _added(contents: list[str], special: bool = True) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": number, "content": content, **flags} for number, content in enumerate(contents)]


def sentencepiece(words: tuple[str, ...] = ("the", "cat"), **changes: Any) -> bytes:
    """A BPE with byte fallback as Llama 2 has it: <unk>, <s>, </s>, <|user|>, 256 bytes, some letters, some words."""
    vocab = {token: number for number, token in enumerate(CONTROL)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = []
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz.,!'"]:
        vocab[piece] = len(vocab)
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
        vocab[f"▁{word}"] = len(vocab)
        merges.append(["▁", word])
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(CONTROL),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps({**data, **changes}).encode()


def byte_level(**changes: Any) -> bytes:
    """A byte-level BPE as GPT-2 has it, without merges, with an ordinary token written like markup and a run of spaces."""
    vocab = {token: number for number, token in enumerate(CONTROL)}
    for character in _alphabet():
        vocab[character] = len(vocab)
    plain = _added(["<think>", "   "], special=False)
    for token in plain:
        token["id"] += len(vocab)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(CONTROL) + plain,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return json.dumps({**data, **changes}).encode()


def unigram() -> bytes:
    """A Unigram model with Metaspace, which knows its control tokens as pieces of text."""
    pieces = [[token, 0.0] for token in CONTROL] + [["▁", -3.0]] + [[letter, -5.0] for letter in "abcdefghijklmnopqrstuvwxyz<>/|"]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(CONTROL),
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    }
    return json.dumps(data).encode()


def words() -> bytes:
    """A WordLevel model without a decoder: the plainest there is."""
    vocab = {token: number for number, token in enumerate([*CONTROL, "the", "cat", "sat"])}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(CONTROL),
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    return json.dumps(data).encode()
