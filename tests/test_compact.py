"""A tokenizer.json is written anew when a model is made: the same tokens, in the form that is read fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import tokenizers_made
from llmcli import acquire
from llmcli.text.compact import compact
from llmcli.weights import packed

TEXTS = [
    "Once upon a time, there was",
    "  two  spaces\n\n\tTab",
    "日本語 émoji 👩\u200d👧 नमस्ते",
    "",
    " a",
    "<|im_end|>",
    "def f(x):\n        return x",
]


def bpe(**changes: Any) -> bytes:
    """A byte-pair tokenizer, its file as others write it."""
    data = json.loads(tokenizers_made.byte_level())
    data["model"] |= changes
    return json.dumps(data, indent=2).encode()


def same(before: bytes, after: bytes) -> None:
    one, other = map(tokenizers.Tokenizer.from_buffer, (before, after))
    assert one.get_vocab() == other.get_vocab()
    for text in TEXTS:
        assert one.encode(text).ids == other.encode(text).ids
    # The library's own form of it has vocabulary, merges, added tokens and all settings.
    assert json.loads(one.to_str()) == json.loads(other.to_str())


@pytest.mark.parametrize("name", ["falcon", "gpt-neox-20b", "olmo", "phi-2", "smollm2", "t5-small"])
def test_real_tokenizers_stay_the_same(data_dir: Path, name: str) -> None:
    data = (data_dir / "tokenizers" / name / "tokenizer.json").read_bytes()
    same(data, compact(data))


@pytest.mark.parametrize("family", ["sentencepiece", "byte_level", "unigram", "words"])
def test_every_kind_stays_the_same(family: str) -> None:
    data = getattr(tokenizers_made, family)()
    same(data, compact(data))
    assert compact(compact(data)) == compact(data)


def test_the_form_that_is_read_fastest() -> None:
    vocab, merges = {"b": 1, "é": 5, "ab": 2, "a": 0, "日": 4, "ba": 3}, [["b", "a"], ["a", "b"]]
    found = compact(bpe(vocab=vocab, merges=merges))
    model = json.loads(found)["model"]
    assert list(model["vocab"].items()) == sorted(vocab.items(), key=lambda item: item[0].encode()), "in the order of bytes"
    assert model["merges"] == ["b a", "a b"], "texts, the first one still the first"
    assert b"\n" not in found and b": " not in found and "日".encode() in found


@pytest.mark.parametrize("merges", [[["a", " b"]], [["#version", "b"]], [["a", "b"], ["a", " b"]]])
def test_merges_that_are_no_texts(merges: list[list[str]]) -> None:
    """A text is cut at its space, and those that begin with #version are passed over."""
    tokens = sorted({token for merge in merges for token in (*merge, "".join(merge))})
    data = bpe(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    assert json.loads(compact(data))["model"]["merges"] == merges
    same(data, compact(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"model": null}',
        b'{"model": {"type": "BPE"}}',
        bpe(vocab=[]),
        bpe(merges=None),
        bpe(merges=[[1, 2]]),
        bpe(vocab={"\ud800": 0}),
        bpe(vocab={"a": float("nan")}),
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}',
        b'{"model": ' + b"[" * 100_000,
    ],
)
def test_what_is_broken_stays_as_it_is(data: bytes) -> None:
    """What is wrong with it is for the library to say."""
    assert compact(data) == data


def test_a_made_model_has_it(tmp_path: Path, data_dir: Path) -> None:
    source = data_dir / "models" / "stories6m"
    path = acquire.import_model(source, "int8", "made", path=tmp_path / "made-int8.safetensors")
    data = (source / "tokenizer.json").read_bytes()
    with packed.open(path) as file:
        assert file.file("tokenizer.json") == compact(data) != data
        assert file.file("config.json") == (source / "config.json").read_bytes()
