"""Streams: tokens one by one give the text of all at once, never half a character; stop strings wherever they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import tokenizers_made
from llmcli.text.stops import Stops
from llmcli.text.tokenizer import Stream, Tokenizer

SENTENCEPIECE = Tokenizer(tokenizers_made.sentencepiece())
BYTE_LEVEL = Tokenizer(tokenizers_made.byte_level())
BOTH = [SENTENCEPIECE, BYTE_LEVEL]
FIRST_BYTE = 4
"""Id of the token for byte 0 in SENTENCEPIECE."""
TEXT = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=60)
"""U+2581 is SentencePiece's own sign for a space."""


def stream(tokenizer: Tokenizer, ids: list[int], after: tuple[int, ...] = ()) -> list[str]:
    one = Stream(tokenizer, after)
    return [one.feed(number) for number in ids] + [one.finish()]


@given(TEXT)
def test_text_comes_back(text: str) -> None:
    for tokenizer in BOTH:
        ids = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(ids) == text


@given(TEXT)
def test_streamed_is_whole_and_never_half_a_character(text: str) -> None:
    for tokenizer in BOTH:
        parts = stream(tokenizer, tokenizer.encode(text, bos=False))
        assert "".join(parts) == text
        assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    """Tokens of single bytes, in any order: what Python makes of the whole is what streaming makes of them."""
    expected = data.decode("utf-8", "replace")
    assert "".join(stream(SENTENCEPIECE, [FIRST_BYTE + byte for byte in data], after=(300,))) == expected


@given(st.lists(st.integers(0, 330), max_size=30), st.integers(0, 30))
def test_any_tokens_and_any_place_to_begin(ids: list[int], cut: int) -> None:
    for tokenizer in BOTH:
        whole = tokenizer.decode(ids)
        assert "".join(stream(tokenizer, ids)) == whole


def test_an_emoji_comes_out_with_its_last_byte() -> None:
    parts = stream(SENTENCEPIECE, [FIRST_BYTE + byte for byte in "👧".encode()], after=(300,))
    assert parts == ["", "", "", "👧", ""]


def test_invalid_bytes_come_out_once_and_the_tail_at_the_end() -> None:
    ids = [FIRST_BYTE + byte for byte in b"\xf0\x9fa\xff\xe2\x82"]
    assert stream(SENTENCEPIECE, ids, after=(300,)) == ["", "", "\ufffda", "\ufffd", "", "", "\ufffd"]


def test_the_first_space_belongs_to_the_tokenizer_only_at_the_start() -> None:
    [the] = SENTENCEPIECE.encode("the", bos=False)
    assert SENTENCEPIECE.token_bytes(the) == b" the"
    assert SENTENCEPIECE.decode([the, the]) == "the the"
    assert SENTENCEPIECE.decode([the], after=[the]) == " the"
    assert SENTENCEPIECE.decode([the], after=[1]) == "the"  # after <s>
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(" the")) == " the"


def test_control_tokens_have_no_text_in_an_answer() -> None:
    the = SENTENCEPIECE.encode("the", bos=False)
    assert SENTENCEPIECE.decode([1, *the, 3, 2]) == "the"
    assert SENTENCEPIECE.token_bytes(3) == b"<|user|>"


def shown(strings: list[str], parts: list[str]) -> tuple[str, bool]:
    stops, text = Stops(strings), ""
    for part in parts:
        more, found = stops.feed(part)
        text += more
        if found:
            return text, True
    return text + stops.finish(), False


def test_a_stop_string_over_several_tokens() -> None:
    assert shown(["\n\nUser:"], ["Hi.", "\n", "\nUs", "er", ": what"]) == ("Hi.", True)
    assert shown(["\n\nUser:"], ["Hi.", "\n", "\nUs", "ually"]) == ("Hi.\n\nUsually", False)


def test_only_what_may_become_a_stop_string_waits() -> None:
    stops = Stops(["END"])
    assert stops.feed("the E") == ("the ", False)
    assert stops.feed("N") == ("", False)
    assert stops.feed("ter ") == ("ENter ", False)
    assert stops.feed("EN") == ("", False)
    assert stops.finish() == "EN"


def test_a_stop_string_inside_an_emoji() -> None:
    assert shown(["\u200d"], ["a👩\u200d👧"]) == ("a👩", True)


def test_of_two_stop_strings_the_one_complete_first() -> None:
    assert shown(["abc", "b"], ["abc"]) == ("a", True)
    assert shown(["bc", "abc"], ["xabc"]) == ("x", True)
    assert shown(["", "z"], ["abz"]) == ("ab", True)
    assert shown([], ["abz"]) == ("abz", False)


LETTERS = st.text("ab", max_size=12)


@given(LETTERS, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 12), max_size=5))
def test_stops_do_not_depend_on_the_cuts(text: str, strings: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    result, found = shown(strings, parts)
    ends = sorted((text.find(s) + len(s), text.find(s)) for s in strings if s in text)
    assert (result, found) == ((text[: ends[0][1]], True) if ends else (text, False))
