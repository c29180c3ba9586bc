"""What a model might say, as a tree of tokens: looked at, taken, generated, expanded, saved. `llm explore` shows it on a terminal.

Every node remembers the distribution after it, so what was seen once is there at once. Texts stay in the KV cache: a branch is computed
from where it leaves another one. One thread at a time may let the tree grow; others may look at it meanwhile.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcli.engine import Engine
from llmcli.errors import InputError
from llmcli.generate import Candidate, NextTokens, Settings, candidates
from llmcli.past import Past, common
from llmcli.sampling import filters
from llmcli.sampling.distribution import Distribution
from llmcli.sampling.pick import pick

TEXTS = 4
"""Texts that stay in the cache: `engine.load(..., texts=TEXTS)` makes room for them."""


@dataclass(eq=False)
class Node:
    """A token behind its parent's text; the root is the text that is given."""

    parent: Node | None = None
    token: Candidate | None = None
    """None for the root."""
    end: bool = False
    """Whether it ends the text."""
    next: NextTokens | None = None
    """The distribution after it; None: not computed yet."""
    children: dict[int, Node] = field(default_factory=dict)
    """Those that were taken, by id."""

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        found, node = [], self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability of the whole path, after the root's text."""
        return math.fsum(node.token.logprob for node in self.path() if node.token is not None)


@dataclass(frozen=True)
class Row:
    """A line of an outline: a possible next token, and what was taken behind it."""

    depth: int
    """How many branches above it."""
    parent: Node
    token: Candidate
    node: Node | None
    """None: never taken."""
    chain: tuple[Node, ...] = ()
    """The nodes behind it as far as there is one way on."""


class Tree:
    """engine: has room in its cache for `TEXTS` texts. ids: the root's tokens. settings: how `generate` draws. count: how many of the
    likeliest tokens a node lists. Close it.

    Raises InputError for a text without tokens."""

    def __init__(self, engine: Engine, ids: Sequence[int], settings: Settings, count: int = 12) -> None:
        if not ids:
            raise InputError("the text is empty", "the model needs at least one token", "Give it some text")
        self.engine, self.ids, self.settings = engine, list(ids), settings
        self.count = min(count, engine.plan.vocab)
        self.root = Node()
        self.computed = 0
        """Tokens computed so far."""
        self._pasts = [Past(engine)]
        self._drawn = 0

    def close(self) -> None:
        for past in self._pasts:
            past.close()

    def ids_of(self, node: Node) -> list[int]:
        """The root's tokens and those of the path."""
        return self.ids + [one.token.id for one in node.path() if one.token is not None]

    def text(self, node: Node) -> str:
        """What the path adds to the root's text; half a character is U+FFFD."""
        return self.engine.tokenizer.decode(self.ids_of(node)[len(self.ids) :], self.ids)

    def look(self, node: Node) -> NextTokens:
        """The likeliest tokens after a node; none after one that ends the text. Raises ContextOverflow, NumericalError, Stopped."""
        if node.next is None:
            node.next = NextTokens([], 0.0) if node.end else self._compute(node)
        return node.next

    def take(self, node: Node, token: Candidate) -> Node:
        """The node of this token behind `node`."""
        child = node.children.get(token.id)
        if child is None:
            child = node.children[token.id] = Node(node, token, token.id in self.engine.end_ids)
        return child

    def generate(self, node: Node, most: int) -> Iterator[Node]:
        """Draws up to `most` tokens behind a node, which become nodes as they are drawn; every call draws others. Raises as `look`."""
        ids = self.ids_of(node)
        settings = dataclasses.replace(self.settings, seed=(self.settings.seed + self._drawn) % 2**64)
        self._drawn += 1
        for _ in range(most):
            if node.end or len(ids) > self.engine.context:
                return
            distribution = self._read(ids)
            filtered = filters.apply(distribution, settings, ids)
            token = pick(filtered, settings.seed, len(ids))
            listed = candidates(self.engine.tokenizer, distribution, filtered, self.count, [token])
            node.next = NextTokens(listed[: self.count], distribution.entropy_bits)
            node = self.take(node, next(one for one in listed if one.id == token))
            ids.append(token)
            yield node

    def expand(self, node: Node, count: int) -> Iterator[Node]:
        """Takes the `count` likeliest texts that are not nodes yet: again and again the token whose path from here has the most
        probability. Raises as `look`."""
        order = itertools.count()  # of equal ones the first that was found
        ahead: list[tuple[float, int, Node, Candidate]] = []

        def add(parent: Node, logprob: float) -> None:
            for one in self.look(parent).candidates:
                heapq.heappush(ahead, (-logprob - one.logprob, next(order), parent, one))

        add(node, 0.0)
        while ahead and count:
            cost, _, parent, token = heapq.heappop(ahead)
            new = token.id not in parent.children
            child = self.take(parent, token)
            if new:
                count -= 1
                yield child
            if count and len(self.ids_of(child)) <= self.engine.context:
                add(child, -cost)

    def rows(self, node: Node) -> list[Row]:
        """The outline of what may follow a node: its likeliest tokens and those taken, likeliest first, each with what was taken behind
        it; a way without branches is one row."""
        found: list[Row] = []
        tokens = list(node.next.candidates) if node.next else []
        listed = {one.id for one in tokens}
        taken = [one.token for one in list(node.children.values()) if one.token is not None and one.token.id not in listed]
        waiting = [(0, node, token) for token in _likeliest([*tokens, *taken])[::-1]]
        while waiting:
            depth, parent, token = waiting.pop()
            child = parent.children.get(token.id)
            chain = _chain(child) if child else ()
            found.append(Row(depth, parent, token, child, chain))
            last = chain[-1] if chain else child
            if last is not None:
                further = [one.token for one in list(last.children.values()) if one.token is not None]
                waiting += [(depth + 1, last, one) for one in _likeliest(further)[::-1]]
        return found

    def record(self, prompt: str) -> dict[str, Any]:
        """The tree as docs/json.md describes it; prompt: the root's text."""
        number: dict[Node, int] = {}
        nodes: list[dict[str, Any]] = []
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            number[node] = len(nodes)
            nodes.append(_record(node, number.get(node.parent) if node.parent else None, len(self.ids)))
            waiting += list(node.children.values())[::-1]
        return {"model": self.engine.name, "prompt": prompt, "prompt_ids": self.ids, "settings": self.settings, "nodes": nodes}

    def _compute(self, node: Node) -> NextTokens:
        ids = self.ids_of(node)
        distribution = self._read(ids)
        filtered = filters.apply(distribution, self.settings, ids)
        return NextTokens(candidates(self.engine.tokenizer, distribution, filtered, self.count), distribution.entropy_bits)

    def _read(self, ids: list[int]) -> Distribution:
        """The distribution after these tokens, computed from where they leave the text in the cache that they share most with. That text
        stays; the one that was used longest ago makes room."""
        best = max(self._pasts, key=lambda past: common(past.ids, ids))
        self._pasts.remove(best)
        if common(best.ids, ids) < len(best.ids):
            self._pasts.append(best)
            if len(self._pasts) == TEXTS:
                self._pasts.pop(self._pasts[0] is best).close()
            best = best.fork()
        self._pasts.append(best)
        distribution = best.read(ids)
        self.computed += best.computed
        return distribution


def _likeliest(tokens: list[Candidate]) -> list[Candidate]:
    return sorted(tokens, key=lambda one: one.rank)


def _chain(node: Node) -> tuple[Node, ...]:
    """What was taken behind a node, up to the first branch."""
    found = []
    while len(node.children) == 1:
        node = next(iter(list(node.children.values())))
        found.append(node)
    return tuple(found)


def _record(node: Node, parent: int | None, prompt: int) -> dict[str, Any]:
    names = ("id", "text", "bytes", "logprob", "rank")
    token: dict[str, Any] = dict.fromkeys(names) if node.token is None else {name: getattr(node.token, name) for name in names}
    if node.token is not None:
        token["bytes"] = node.token.bytes.hex()
    top = None
    if node.next is not None:
        fields = ("id", "text", "bytes", "logprob", "final_prob", "removed_by")
        top = [{name: getattr(one, name) for name in fields} | {"bytes": one.bytes.hex()} for one in node.next.candidates]
    position = None if node.parent is None else prompt + len(node.path()) - 1
    entropy = None if node.next is None else node.next.entropy_bits
    return {"parent": parent, "position": position, **token, "end": node.end, "entropy_bits": entropy, "top": top}
