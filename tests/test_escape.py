"""The filter between strangers' text and a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmcli.text import escape

CODES = (*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF)
OBEYED = [chr(code) for code in CODES]


def filtered(*parts: str) -> str:
    one = escape.Escape()
    return "".join(map(one.feed, parts)) + one.finish()


def test_what_a_terminal_obeys_is_shown() -> None:
    for character in OBEYED:
        for shown in (filtered(character), escape.name(character)):
            assert character not in shown
            assert shown.startswith("\\") and shown.isprintable()
    assert filtered("\x1b[31m\x9b\u202e") == "\\x1b[31m\\x9b\\u202e"


def test_text_of_all_scripts_passes() -> None:
    text = "Ünï 日本語 שלום مرحبا हिन्दी 👩\u200d👧 e\u0301\n\tindented"
    assert filtered(text) == text


def test_a_name_stays_on_one_line() -> None:
    assert escape.name("a\nb\tc\rd") == "a\\nb\\tc\\x0dd"


def test_carriage_returns() -> None:
    assert filtered("a\r\nb") == filtered("a\r", "\nb") == "a\nb"
    assert filtered("a\rb") == filtered("a\r", "b") == "a\\x0db"
    assert filtered("a\r") == "a\\x0d"
    assert filtered("\r", "\r", "\n") == "\\x0d\n"


@given(st.text(), st.lists(st.integers(0, 30)))
def test_cutting_changes_nothing(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    shown = filtered(*parts)
    assert shown == filtered(text)
    assert not set(shown) & set(OBEYED)
