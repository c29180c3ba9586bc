"""A tree of possible texts: its numbers are those of a fresh start, what was computed stays, and what is saved is all of it."""

from __future__ import annotations

import html.parser
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcli import engine as engines
from llmcli.cli.explore import save
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError
from llmcli.generate import Settings, generate, next_tokens
from llmcli.pages.tree import page
from llmcli.tree import TEXTS, Node, Tree

SETTINGS = Settings(temperature=1.0, seed=4)


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engines.opened("demo", context=300, texts=TEXTS) as engine:
        yield engine


@pytest.fixture
def tree(demo: Engine) -> Iterator[Tree]:
    made = Tree(demo, demo.tokenizer.encode("The cat sat on the"), SETTINGS, 5)
    yield made
    made.close()
    assert len(demo.cache._free) == demo.cache.blocks


def walk(tree: Tree, *ranks: int) -> Node:
    """From the root along the tokens of these ranks."""
    node = tree.root
    for rank in ranks:
        node = tree.take(node, tree.look(node).candidates[rank - 1])
    return node


def nodes(tree: Tree) -> list[Node]:
    found, waiting = [], [tree.root]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].children.values()
    return found


def test_distributions_are_those_of_a_fresh_start(tree: Tree) -> None:
    list(tree.expand(tree.root, 40))
    list(tree.generate(walk(tree, 2, 1), 15))
    walk(tree, 4, 1, 3, 2)
    looked = [node for node in nodes(tree) if node.next is not None and not node.end]
    assert len(looked) > 40
    for node in looked:
        assert node.next == next_tokens(tree.engine, tree.ids_of(node), SETTINGS, 5)


def test_nothing_is_computed_twice(tree: Tree) -> None:
    walk(tree, 1, 1, 1)
    before = tree.computed
    assert before == len(tree.ids) + 2
    walk(tree, 1, 1, 1)
    assert tree.computed == before
    end = walk(tree, 1, 1, 1, 2, 1)
    tree.look(end)
    before = tree.computed
    other = walk(tree, 1, 2)
    tree.look(other)
    assert tree.computed == before + 1  # a branch is computed from where it leaves the other one
    tree.look(tree.take(end, tree.look(end).candidates[0]))
    assert tree.computed == before + 2  # and that one is still in the cache


def test_more_branches_than_the_cache_has_room_for(tree: Tree) -> None:
    for first in range(1, 6):
        for second in range(1, 4):
            node = walk(tree, first, second, 1)
            assert tree.look(node) == next_tokens(tree.engine, tree.ids_of(node), SETTINGS, 5)
    assert len(tree._pasts) <= TEXTS


def test_generating_is_what_generate_does(tree: Tree) -> None:
    node = walk(tree, 1)
    drawn = list(tree.generate(node, 12))
    wanted = [step.id for step in generate(tree.engine, tree.ids_of(node), SETTINGS.changed({"max_tokens": 12}))]
    assert [one.token.id for one in drawn if one.token] == wanted
    assert tree.ids_of(drawn[-1]) == tree.ids_of(node) + wanted
    again = list(tree.generate(node, 12))
    assert again[-1] is not drawn[-1]  # another seed
    assert tree.text(drawn[-1]).startswith(tree.text(node))


def test_expanding_takes_the_likeliest_texts(tree: Tree) -> None:
    """Of all texts that were not taken, none that could be seen is likelier than one that was."""
    new = list(tree.expand(tree.root, 30))
    assert len(new) == len(set(new)) == 30
    least = min(one.logprob for one in new)
    for node in [tree.root, *new]:
        for token in node.next.candidates if node.next else ():
            if token.id not in node.children:
                assert node.logprob + token.logprob <= least + 1e-9
    assert len(list(tree.expand(tree.root, 10))) == 10
    assert len(nodes(tree)) == 41


def test_the_end_of_text_has_nothing_behind_it(tree: Tree) -> None:
    token = next_tokens(tree.engine, tree.ids, SETTINGS, 1, sorted(tree.engine.end_ids)).candidates[-1]
    end = tree.take(tree.root, token)
    assert end.end and tree.look(end).candidates == [] and tree.rows(end) == []
    assert list(tree.generate(end, 5)) == list(tree.expand(end, 5)) == []


def test_the_end_of_the_context(demo: Engine) -> None:
    ids = (demo.tokenizer.encode("The cat sat on the mat. ") * 60)[:298]
    tree = Tree(demo, ids, Settings(temperature=0.0), 3)
    drawn = list(tree.generate(tree.root, 10))
    assert len(drawn) == 3  # of the last one, nothing is computed
    with pytest.raises(ContextOverflow):
        tree.look(drawn[-1])
    assert len(list(tree.expand(tree.root, 100))) < 100
    tree.close()
    with pytest.raises(InputError):
        Tree(demo, [], SETTINGS)


def test_the_outline(tree: Tree) -> None:
    assert [row.token.rank for row in tree.rows(tree.root)] == []
    end = walk(tree, 2, 1, 1)
    tree.look(end)
    rows = tree.rows(tree.root)
    assert [(row.depth, row.token.rank, len(row.chain)) for row in rows] == [(0, 1, 0), (0, 2, 2), (0, 3, 0), (0, 4, 0), (0, 5, 0)]
    walk(tree, 2, 1, 3)
    rows = tree.rows(tree.root)
    assert [(row.depth, row.token.rank, len(row.chain)) for row in rows][1:4] == [(0, 2, 1), (1, 1, 0), (1, 3, 0)]
    rare = next_tokens(tree.engine, tree.ids, SETTINGS, 40).candidates[-1]
    tree.take(tree.root, rare)
    assert tree.rows(tree.root)[-1].token.rank == 40
    assert [row.token for row in tree.rows(end)] == tree.look(end).candidates


def test_probabilities_multiply_along_a_path(tree: Tree) -> None:
    node = walk(tree, 3, 2, 1)
    assert math.exp(node.logprob) == pytest.approx(math.prod(one.token.prob for one in node.path() if one.token))
    assert tree.root.logprob == 0.0 and tree.root.path() == []


def test_what_is_saved(tree: Tree, tmp_path: Path) -> None:
    list(tree.expand(tree.root, 12))
    last = list(tree.generate(tree.root, 30))[-1]
    save(tree.record("The cat sat on the"), tmp_path / "tree.json")
    found = json.loads((tmp_path / "tree.json").read_text("utf-8"))
    assert (found["schema"], found["model"], found["prompt"], found["prompt_ids"]) == (1, "demo:int8", "The cat sat on the", tree.ids)
    assert len(found["nodes"]) == len(nodes(tree)) and found["nodes"][0]["parent"] is None
    paths = set()
    for number, node in enumerate(found["nodes"]):
        ids = []
        while node["parent"] is not None:
            assert node["position"] - len(tree.ids) + 1 > 0
            ids.append(node["id"])
            node = found["nodes"][node["parent"]]
        paths.add(tuple(ids[::-1]))
        assert number == 0 or found["nodes"][number]["parent"] < number
    assert paths == {tuple(one.token.id for one in node.path() if one.token) for node in nodes(tree)}
    assert tuple(tree.ids_of(last)[len(tree.ids) :]) in paths


class Reader(html.parser.HTMLParser):
    """The text and the tags of a page; every tag that is opened must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append((tag, dict(attrs)))  # type: ignore[call-overload]
        if tag not in ("meta", "li", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page(tree: Tree, tmp_path: Path) -> None:
    """Every token taken and every alternative is on it; nothing on it leads anywhere else."""
    list(tree.expand(tree.root, 15))
    save(tree.record("The cat sat on the"), tmp_path / "tree.html")
    reader = read((tmp_path / "tree.html").read_text("utf-8"))
    rows = [attributes["title"] for tag, attributes in reader.tags if tag == "bdi" and "title" in attributes]
    for node in nodes(tree)[1:]:
        assert node.token is not None and any(f", id {node.token.id}" in title for title in rows)
    assert all(token.text in reader.text for token in tree.look(tree.root).candidates)
    assert not {"script", "img", "link", "iframe", "a"} & {tag for tag, _ in reader.tags}
    assert not any("href" in attributes or "src" in attributes for _, attributes in reader.tags)


def test_hostile_text_stays_text() -> None:
    evil = "</bdi></title><script>alert(1)</script>\x1b[31m\u202e&amp;"
    token = {"id": 1, "text": evil, "logprob": None, "rank": 1}
    root = {"parent": None, "id": None, "text": None, "logprob": None, "rank": None, "top": [{**token, "id": 2, "logprob": -1.0}]}
    reader = read(page({"model": evil, "prompt": evil, "nodes": [root, {**token, "parent": 0, "top": None}]}))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count("<script>alert(1)</script>\\x1b[31m\\u202e&amp;") == 4
    assert not {"\x1b", "\u202e"} & set(reader.text)


def test_a_page_may_be_deep() -> None:
    """Deeper than Python recurses: a branch at each of 3,000 tokens."""

    def node(parent: int | None) -> dict[str, object]:
        return {"parent": parent, "id": 7, "text": "x", "logprob": -0.5, "rank": 1, "top": None}

    record = [node(None)]
    trunk = 0
    for _ in range(3000):
        record += [node(trunk), {**node(trunk), "id": 8}]
        trunk = len(record) - 2
    assert page({"model": "m", "prompt": "p", "nodes": record}).count("<details") == 6000
