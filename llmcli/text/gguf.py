"""The tokenizer of a GGUF file as the files of the Hub's layout: tokenizer.json and what belongs to it.

GGUF keeps the vocabulary (text, kind and, for SentencePiece, score of each token), the merges of byte-level BPE, and
the name of the rule that cuts a text into words before merging; the rules themselves every program has to know. Two
models are common: 'gpt2', byte-level BPE, and 'llama', SentencePiece's BPE, whose merges follow from the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmcli.errors import CorruptFile, UnsupportedModel

Metadata = Mapping[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens (tokenizer.ggml.token_type)."""

LONGEST_PIECE = 256
"""Characters of the longest piece that may come of merges; SentencePiece makes pieces of up to 16."""

_END_NAMES = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end an answer wherever they exist: many files name only one of theirs."""

_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = {**_GPT2, "use_regex": False}


def _cut(pattern: str) -> list[dict[str, Any]]:
    """Cuts a text into the matches of a regular expression."""
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES]


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_LLAMA3 = _cut(_WORDS + r"\p{N}{1,3}" + _REST)
_QWEN2 = _cut(_WORDS + r"\p{N}" + _REST)
_TEKKEN = _cut(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FALCON: list[dict[str, Any]] = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    _GPT2,
    {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
]

CUTS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion", "roberta-bpe"), [_GPT2]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), [_DIGITS, _GPT2]),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    "bloom": _cut(r" ?[^\s|.,!?…。，、।۔،()]+"),
    "tekken": _TEKKEN,
    "falcon": _FALCON,
}
"""tokenizer.ggml.pre -> the steps that cut a text into words. Files without it are older than it; they get GPT-2's rule."""
_WHOLE_WORDS = _BEGINNING = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
"""Rules whose tokenizers take a word that is a token as it is, without merging, and whose tokenizers put the beginning of
text first unless the file says otherwise."""


def files(metadata: Metadata) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and, where the file has one, chat_template.jinja.

    Raises CorruptFile, or UnsupportedModel for a kind of tokenizer that we do not know."""
    tokens = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int) or [NORMAL] * len(tokens)
    if not tokens or len(kinds) != len(tokens):
        raise CorruptFile("the tokenizer", f"{len(tokens):,} tokens, {len(kinds):,} token types")
    model = _get(metadata, "model", str, "")
    if model == "gpt2":
        pre = _get(metadata, "pre", str, "default")
        parts, beginning = _byte_level(metadata, tokens, kinds, pre), pre in _BEGINNING
    elif model == "llama":
        parts, beginning = _sentencepiece(metadata, tokens, kinds), True
    else:
        known = "llm reads gpt2 (byte-level BPE) and llama (SentencePiece)"
        raise UnsupportedModel(f"the tokenizer is of the kind {json.dumps(model)[:60]}", known)
    none = dict.fromkeys(("truncation", "padding", "post_processor"))
    library = {"version": "1.0", **none, "added_tokens": _added(tokens, kinds), **parts}
    named = {name: _token(metadata, name, tokens) for name in ("bos", "eos", "unknown", "padding")}
    config: dict[str, Any] = {"add_bos_token": _get(metadata, "add_bos_token", bool, beginning) and named["bos"] is not None}
    for ours, theirs in {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}.items():
        number = named[theirs]
        if number is not None:
            config[ours] = tokens[number]
    result = {"tokenizer.json": library, "tokenizer_config.json": config, "generation_config.json": _generation(metadata, tokens, kinds)}
    found = {name: json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") for name, data in result.items()}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        found["chat_template.jinja"] = template.encode("utf-8", "replace")
    return found


def _byte_level(metadata: Metadata, tokens: list[str], kinds: list[int], pre: str) -> dict[str, Any]:
    if pre not in CUTS:
        known = ", ".join(sorted(CUTS))
        raise UnsupportedModel(f"the tokenizer cuts words by the rule {json.dumps(pre)[:60]}", f"llm knows {known}")
    merges = [merge.split(" ") for merge in _list(metadata, "merges", str)]
    odd = next((merge for merge in merges if len(merge) != 2), None)
    if odd is not None:
        raise CorruptFile("the tokenizer", f"the merge {json.dumps(' '.join(odd))[:80]} is not of two tokens")
    steps = CUTS[pre]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": _GPT2,
        "model": {"type": "BPE", "vocab": _vocabulary(tokens, kinds), "merges": merges, "ignore_merges": pre in _WHOLE_WORDS},
    }


def _sentencepiece(metadata: Metadata, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    scores = _list(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise CorruptFile("the tokenizer", f"{len(tokens):,} tokens, {len(scores):,} scores")
    vocabulary = _vocabulary(tokens, kinds)
    first = _get(metadata, "add_space_prefix", bool, True)
    prefix = [{"type": "Prepend", "prepend": "▁"}] if first else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if first else []
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": list(_merges(tokens, kinds, scores)),
        },
    }


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> Iterator[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best piece first: SentencePiece merges whatever gives the best score."""
    numbers = {token: i for token, i in _vocabulary(tokens, kinds).items() if kinds[i] in (NORMAL, USER_DEFINED)}
    for number in sorted(numbers.values(), key=lambda i: (-scores[i], i)):
        piece = tokens[number]
        if kinds[number] != NORMAL or len(piece) > LONGEST_PIECE:
            continue
        pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = (pair for pair in pairs if pair[0] in numbers and pair[1] in numbers)
        yield from sorted(known, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))


def _vocabulary(tokens: list[str], kinds: list[int]) -> dict[str, int]:
    """Token -> id. Ids that stand for nothing are left out; of tokens that are there twice the first counts."""
    found: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not _filler(number, token, kind):
            found.setdefault(token, number)
    return found


def _filler(number: int, token: str, kind: int) -> bool:
    """Whether an id was only filled in, because embeddings have more rows than the tokenizer has tokens."""
    return kind == UNUSED or (kind != NORMAL and token == f"[PAD{number}]")


def _added(tokens: list[str], kinds: list[int]) -> list[dict[str, Any]]:
    """The tokens that are found in a text before it is cut into words."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = _vocabulary(tokens, kinds)
    return [
        {"id": number, "content": token, **flags, "special": kind != USER_DEFINED}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token and first.get(token) == number
    ]


def _generation(metadata: Metadata, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """generation_config.json: the tokens that begin a text and that end an answer."""
    ends = [_token(metadata, name, tokens) for name in ("eos", "eot", "eom")]
    ends += [number for number, kind in enumerate(kinds) if kind == CONTROL and tokens[number] in _END_NAMES]
    begin = _token(metadata, "bos", tokens)
    found: dict[str, Any] = {} if begin is None else {"bos_token_id": begin}
    return {**found, "eos_token_id": sorted({end for end in ends if end is not None})}


def _token(metadata: Metadata, name: str, tokens: list[str]) -> int | None:
    """The id of a named token; None where there is none."""
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return number if type(number) is int and 0 <= number < len(tokens) else None


def _list(metadata: Metadata, name: str, kind: type) -> list[Any]:
    found = metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise CorruptFile("the tokenizer", f"tokenizer.ggml.{name} is not a list of {kind.__name__}")
    return found


def _get(metadata: Metadata, name: str, kind: type, default: Any) -> Any:
    found = metadata.get(f"tokenizer.ggml.{name}", default)
    if type(found) is not kind:
        raise CorruptFile("the tokenizer", f"tokenizer.ggml.{name} is not of the type {kind.__name__}")
    return found
