"""Pages without a browser: one file that asks for nothing, from which every text comes back, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.pages.page import BLOCK, DIVERGENCE, SURPRISE, Choice, Name, Page
from llmcli.text import escape
from test_look import HOSTILE, STORY, answer, llm, refused

ATTACK = (
    "</script><script>alert(1)</script><!-- <![CDATA[ \"'&lt;&amp; <img src=x onerror=alert(1)> </main></style> \u2028 \ud83d\x00\x1b[2J"
)


class Reader(html.parser.HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[list[str]] = [[]]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in ("meta", "u"):
            self.open.append(text)

    def handle_endtag(self, tag: str) -> None:
        if tag != "u":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            "".join(text)
            for name, found, text in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]

    def data(self, kind: str) -> list[Any]:
        return [json.loads(text) for text in self.texts("script", **{"class": kind})]


def made(pieces: list[str], title: str = "title") -> str:
    parts: list[str] = []
    page = Page(parts.append, title, SURPRISE, ["fact"], ["list"])
    for number, piece in enumerate(pieces):
        page.token(Name(number, escape.name(piece)), piece, float(number), [piece], [[Choice(Name(0, piece), 0.5, piece)]])
    page.end("", [title])
    return "".join(parts)


KNOWN = {
    "html",
    "head",
    "body",
    "meta",
    "title",
    "style",
    "header",
    "h1",
    "bdi",
    "p",
    "kbd",
    "main",
    "span",
    "u",
    "footer",
    "aside",
    "script",
}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.text(min_size=1), st.sampled_from(re.split("( )", ATTACK))), min_size=1, max_size=8), st.text())
def test_texts_come_back_and_nothing_else(pieces: list[str], title: str) -> None:
    source = made([piece.encode("utf-8", "replace").decode() or "x" for piece in pieces], title)
    pieces = [piece.encode("utf-8", "replace").decode() or "x" for piece in pieces]
    reader = Reader(source)
    assert {tag for tag, _, _ in reader.elements} <= KNOWN and len(reader.open) == 1
    assert all(
        set(found) <= {"class", "lang", "charset", "http-equiv", "content", "name", "type", "role", "hidden"}
        for _, found, _ in reader.elements
    )
    assert len(reader.texts("script")) == 4 and len(reader.texts("script", type="application/json")) == 3
    filtered = []
    for piece in pieces:
        one = escape.Escape()
        filtered.append(one.feed(piece) + one.finish())
    tokens = [text for text in reader.texts("span") if text][: len(filtered)]
    assert tokens == filtered
    [records], [names] = reader.data("numbers"), reader.data("names")
    assert [facts for _, facts, _ in records] == [[piece] for piece in pieces]
    assert all(names[own] == [number, escape.name(pieces[number])] for number, (own, _, _) in enumerate(records))
    assert reader.texts("title") == [escape.name(title)]


def test_the_policy_allows_what_is_there_and_nothing_else() -> None:
    source = made([ATTACK.encode("utf-8", "replace").decode()])
    reader = Reader(source)
    [policy] = [found["content"] or "" for tag, found, _ in reader.elements if tag == "meta" and found.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    code = [text for tag, found, text in reader.elements if tag == "script" and "type" not in found]
    hashes = {
        kind: "'sha256-" + base64.b64encode(hashlib.sha256("".join(text).encode()).digest()).decode() + "'"
        for kind, text in (("script-src", code[0]), ("style-src", reader.texts("style")))
    }
    assert len(code) == 1 and rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", **hashes}
    assert source.index("Content-Security-Policy") < source.index("<style>") and "alert(1)</script>" not in source
    assert not re.search(r"https?:|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(", source)


def test_numbers_stand_in_blocks() -> None:
    count = 2 * BLOCK + 3
    reader = Reader(made(["a "] * count))
    assert [len(block) for block in reader.data("numbers")] == [BLOCK, BLOCK, 3]
    assert reader.data("terms") == [{"facts": ["fact"], "lists": ["list"], "block": BLOCK}]


@pytest.mark.parametrize("scale", [SURPRISE, DIVERGENCE])
def test_colours_begin_where_the_legend_says(scale: Any) -> None:
    for value, level in [(math.nan, 0), (0.0, 0), (scale.levels[0], 1), (scale.levels[4] * 0.999, 4), (scale.levels[4], 5), (1e9, 8)]:
        parts: list[str] = []
        page = Page(parts.append, "", scale, [], [])
        page.token(Name(0, "x"), "x", value, [], [])
        page.end("", [])
        assert f'<span class="h{level}">x</span>' in "".join(parts)
    style = (Path(__file__).parent.parent / "llmcli" / "pages" / "page.css").read_text("utf-8")
    for level in range(1, len(scale.levels) + 1):
        assert f".h{level} {{" in style and style.count(f"--h{level}: #") == 2  # light and dark


def main_text(reader: Reader) -> str:
    return "".join(text for tag, found, parts in reader.elements if tag == "span" for text in parts)


def test_score_as_a_page(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert answer(llm("score", HOSTILE, "--html", str(file))).startswith("perplexity")
    source = file.read_text("utf-8")
    reader = Reader(source)
    shown = escape.Escape()
    assert shown.feed(HOSTILE.replace("\r\n", "\r")).replace("\\x0d", "\\x0d\n") in main_text(reader)  # they are two tokens
    records = [json.loads(line) for line in answer(llm("score", HOSTILE, "--json", "-k", "5")).splitlines()]
    [numbers], [names] = reader.data("numbers"), reader.data("names")
    assert len(numbers) == len(records) - 1
    for (own, facts, [choices]), record in zip(numbers[1:], records[1:-1], strict=True):
        assert names[own][0] == record["id"] and facts[1] == f"{record['surprise_bits']:.2f} bits" and facts[2] == str(record["rank"])
        assert [names[name][0] for name, _, _ in choices] == [other["id"] for other in record["top"]]
        assert [prob for _, prob, _ in choices] == pytest.approx([math.exp(other["logprob"]) for other in record["top"]], rel=1e-4)
    assert reader.elements[[tag for tag, _, _ in reader.elements].index("span")][1]["class"] == "h0 control"
    table = answer(llm("score", STORY, "--table", "-k", "2", "--html", str(file)))
    assert table == answer(llm("score", STORY, "--table", "-k", "2"))
    assert answer(llm("score", STORY, "--json", "--html", str(file))) == answer(llm("score", STORY, "--json"))


def test_run_as_a_page(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    words = ["run", "Once upon a time", "-n", "30", "--seed", "3", "--temp", "1.2", "--stop", "little"]
    text = answer(llm(*words, "--html", str(file)))
    assert text == answer(llm(*words))
    reader = Reader(file.read_text("utf-8"))
    found = json.loads(answer(llm(*words, "--json", "--probs", "5")))
    [numbers], [names] = reader.data("numbers"), reader.data("names")
    assert [names[own][0] for own, _, _ in numbers] == [token["id"] for token in found["tokens"]]
    for (_, _, [choices]), token in zip(numbers, found["tokens"], strict=True):
        assert [names[name][0] for name, _, _ in choices] == [other["id"] for other in token["top"]]
        assert [note in ("top_k", "top_p", "min_p") for _, _, note in choices] == [bool(other["removed_by"]) for other in token["top"]]
    assert reader.texts("span", **{"class": "plain"})[0] == "Once upon a time" and text.rstrip("\n") in main_text(reader)
    answer(llm(*words, "--probs", "2", "--html", str(file)))
    assert {len(choices) for _, _, [choices] in Reader(file.read_text("utf-8")).data("numbers")[0]} == {2}


def test_diff_as_a_page(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    shown = answer(llm("diff", "-m", "demo", "-m", "demo:int8", STORY, "--html", str(file)))
    assert shown == answer(llm("diff", "-m", "demo", "-m", "demo:int8", STORY))
    reader = Reader(file.read_text("utf-8"))
    [terms], [numbers] = reader.data("terms"), reader.data("numbers")
    assert terms["lists"] == ["likeliest to demo:int8"] * 2 and STORY in main_text(reader)
    for _, facts, [left, right] in numbers[1:]:
        assert facts[0] == "0 nats" and left == right and len(left) == 5


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    refused(llm("score", "9999", "--ids", "--html", str(file)), 8)
    assert list(tmp_path.iterdir()) == []
    refused(llm("score", STORY, "--html", str(tmp_path / "missing" / "page.html")), 7)
    refused(llm("run", STORY, "-n", "3", "--html", str(tmp_path)), 7)
