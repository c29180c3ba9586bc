"""Tokenizers rebuilt from GGUF metadata: equal to the originals, and never trusted."""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.errors import CorruptFile, LlmError, UnsupportedModel
from llmcli.text import gguf
from llmcli.text.decoding import _alphabet
from llmcli.text.tokenizer import Stream, Tokenizer
from llmcli.weights.gguf import File

BYTE_LEVEL: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["<|start|>", "<|im_end|>", *_alphabet(), "ab", "abc", "<tool>", "[PAD261]"],
    "token_type": [3, 3] + [1] * 258 + [4, 4],
    "merges": ["a b", "ab c"],
    "bos_token_id": 0,
    "eos_token_id": 0,
}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc"]
SENTENCEPIECE: dict[str, Any] = {
    "model": "llama",
    "tokens": PIECES,
    "token_type": [2, 3, 3] + [6] * 256 + [1] * 8,
    "scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -1.0, -2.0, -3.0, -1.5],
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rebuilt(values: dict[str, Any], **changes: Any) -> tuple[Tokenizer, dict[str, bytes]]:
    files = gguf.files({f"tokenizer.ggml.{name}": value for name, value in {**values, **changes}.items()})
    return Tokenizer(files["tokenizer.json"], json.loads(files["tokenizer_config.json"])), files


def pieces(tokenizer: Tokenizer, text: str, names: list[str]) -> list[str]:
    return [names[number] for number in tokenizer.encode(text)]


# --- by hand


def test_byte_level_merges_and_special_tokens() -> None:
    tokenizer, files = rebuilt(BYTE_LEVEL)
    names = BYTE_LEVEL["tokens"]
    assert pieces(tokenizer, "abcab b", names) == ["abc", "ab", "Ġ", "b"]
    assert tokenizer.encode("<|im_end|>", special=True) == [1]
    assert 1 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.control >= {0, 1} and tokenizer.encode("<tool>", special=True) == [names.index("<tool>")]
    assert tokenizer.unused(len(names)) == [261]
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 0, "eos_token_id": [0, 1]}


@pytest.mark.parametrize(("pre", "given", "begins"), [("gpt-2", None, False), ("llama-bpe", None, True), ("llama-bpe", False, False)])
def test_beginning_of_text(pre: str, given: bool | None, begins: bool) -> None:
    tokenizer, _ = rebuilt(BYTE_LEVEL, pre=pre, **({} if given is None else {"add_bos_token": given}))
    assert (tokenizer.encode("a")[0] == 0) is begins


@pytest.mark.parametrize(
    ("pre", "text", "wanted"),
    [
        ("gpt-2", "a 12345'll", ["a", " 12345", "'ll"]),
        ("smollm", "a 123'll", ["a", " ", "1", "2", "3", "'ll"]),
        ("llama-bpe", "a 12345'LL x\n\n y", ["a", " ", "123", "45", "'LL", " x", "\n\n", " y"]),
        ("qwen2", "a 123 (x", ["a", " ", "1", "2", "3", " (", "x"]),
        ("tekken", "aB 12/\n x", ["a", "B", " ", "1", "2", "/\n", " x"]),
        ("bloom", "l'eau  (12), [x] 你。", ["l'eau", "  (", "12", "),", " [x]", " 你", "。"]),
        ("falcon", "a... 1234", ["a", "...", " ", "123", "4"]),
    ],
)
def test_words_are_cut_as_the_rule_says(pre: str, text: str, wanted: list[str]) -> None:
    import tokenizers

    files = gguf.files({f"tokenizer.ggml.{name}": value for name, value in {**BYTE_LEVEL, "pre": pre}.items()})
    cut = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"]).pre_tokenizer
    assert ["".join(text[slice(*place)]) for _, place in cut.pre_tokenize_str(text)] == wanted


def test_sentencepiece_merges_by_score() -> None:
    tokenizer, _ = rebuilt(SENTENCEPIECE)
    assert pieces(tokenizer, "abc", PIECES) == ["<s>", "▁a", "bc"]
    assert pieces(tokenizer, "cab", PIECES) == ["<s>", "▁", "c", "ab"]
    assert pieces(tokenizer, "é", PIECES) == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é a")) == "abc é a"


def test_sentencepiece_without_a_space_first() -> None:
    tokenizer, _ = rebuilt(SENTENCEPIECE, add_space_prefix=False, add_bos_token=False)
    assert pieces(tokenizer, "abc", PIECES) == ["a", "bc"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": []},
        {"tokens": [1, 2]},
        {"tokens": "abc"},
        {"token_type": [1]},
        {"merges": ["a b c"]},
        {"merges": ["ab"]},
        {"merges": ["a z\x00"]},
        {"add_bos_token": "yes"},
        {"pre": 7},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        rebuilt(BYTE_LEVEL, **changes)


def test_scores_are_needed() -> None:
    with pytest.raises(CorruptFile, match="scores"):
        rebuilt(SENTENCEPIECE, scores=[0.0])


@pytest.mark.parametrize("changes", [{"model": "t5"}, {"pre": "\x1b[2J"}])
def test_unknown_kinds_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        rebuilt(BYTE_LEVEL, **changes)
    assert "\x1b" not in str(caught.value)


def test_a_long_piece_takes_no_time() -> None:
    """Pairs of pieces are sought in every piece, which goes with the square of its length."""
    rebuilt(SENTENCEPIECE, tokens=[*PIECES, "a" * 1_000_000], token_type=[*SENTENCEPIECE["token_type"], 1], scores=[0.0] * 268)


def test_random_metadata_never_do_harm() -> None:
    rng = np.random.default_rng(0)
    junk: list[Any] = [None, -1, 2**63, 1.5, True, "", "x", [], [1], ["a"], [1.0], [[]]]
    for _ in range(300):
        base = dict(BYTE_LEVEL if rng.random() < 0.5 else SENTENCEPIECE)
        for name in rng.choice(sorted(base), 2):
            base[str(name)] = junk[rng.integers(len(junk))]
        try:
            rebuilt(base)
        except LlmError:
            pass


# --- real ones


def real(path: Path) -> Tokenizer:
    with File(path) as file:
        files = gguf.files(file.metadata)
    return Tokenizer(files["tokenizer.json"], json.loads(files["tokenizer_config.json"]))


@pytest.mark.parametrize("name", ["gpt-2", "falcon", "mpt"])
def test_vectors_of_others(name: str, data_dir: Path) -> None:
    path = data_dir / "gguf" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    wanted = [[int(number) for number in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    tokenizer = real(path)
    assert len(texts) == len(wanted) > 40
    assert [tokenizer.encode(text, bos=False) for text in texts] == wanted


def test_smollm2_is_the_original(data_dir: Path) -> None:
    """10,000 lines of all the texts, books and encyclopedia."""
    found = real(data_dir / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    wanted = Tokenizer((data_dir / "tokenizers" / "smollm2" / "tokenizer.json").read_bytes())
    lines: list[str] = []
    for path in sorted((data_dir / "text").glob("*.xz")):
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines += itertools.islice(file, 1800)
    assert len(lines) >= 10_000
    assert [line for line in lines if found.encode(line) != wanted.encode(line)] == []


def test_a_real_sentencepiece_vocabulary(data_dir: Path) -> None:
    tokenizer = real(data_dir / "gguf" / "llama-2-tiny-random.gguf")
    text = "Hello world, it's  2024: 你好 🙂\n\nend"
    ids = tokenizer.encode(text)
    assert ids[:3] == [1, 15043, 3186]
    stream = Stream(tokenizer)
    assert "".join(map(stream.feed, ids)) + stream.finish() == text
