"""A saved tree as one page that needs nothing else: no network, no script. Branches are `<details>`, so a keyboard opens them too.

The page is made of the record that docs/json.md describes. All text in it is a stranger's: it is escaped, and the page's own policy
forbids scripts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmcli.text import escape

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --dim: light-dark(#5a5a5a, #a0a0a0); --bar: light-dark(#2a78c8, #5aa8f0); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.dim {{ color: var(--dim); }}
ul {{ list-style: none; margin: 0; padding-left: 1.2rem; border-left: 1px solid color-mix(in srgb, var(--dim) 40%, transparent); }}
summary, .leaf {{ padding: .1rem 0; overflow-wrap: anywhere; }}
.leaf {{ padding-left: 1.05rem; }}
summary {{ cursor: pointer; }}
.p {{ display: inline-block; min-width: 4.2rem; text-align: right; font-variant-numeric: tabular-nums; color: var(--dim); }}
meter {{ appearance: none; display: inline-block; width: 6rem; height: .6rem; border: 0; margin: 0 .6rem; background: none; }}
meter::-webkit-meter-bar {{ background: none; border: 0; }}
meter::-webkit-meter-optimum-value {{ background: var(--bar); }}
meter::-moz-meter-bar {{ background: var(--bar); }}
bdi {{ white-space: pre-wrap; border-radius: .2rem; }}
bdi:hover {{ outline: 1px solid var(--bar); }}
</style>
<h1>{title}</h1>
"""


def page(record: Mapping[str, Any]) -> str:
    """The page of a tree's record."""
    nodes: Sequence[Mapping[str, Any]] = record["nodes"]
    children: list[list[int]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        if node["parent"] is not None:
            children[node["parent"]].append(number)
    taken = sum(node["parent"] is not None for node in nodes)
    shown = escape.Escape()
    prompt = shown.feed(record["prompt"]) + shown.finish()  # its lines stay lines
    parts = [
        _HEAD.format(title="What might come next"),
        f'<p class="dim">{_text(record["model"])}, {taken:,} token{"" if taken == 1 else "s"} taken. The percentage is the '
        "probability of a row's first token after all before it; point at a token for its own.</p>\n",
        f'<p class="text"><bdi>{html.escape(prompt)}</bdi></p>\n',
        *_rows(nodes, children),
        "</html>\n",
    ]
    return "".join(parts)


def _rows(nodes: Sequence[Mapping[str, Any]], children: Sequence[Sequence[int]]) -> Iterator[str]:
    """The rows of all branches. A list of work instead of recursion: a tree may be as deep as a context is long."""
    waiting: list[str | tuple[int, Mapping[str, Any]]] = list(_branch(nodes, children, 0))[::-1]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
            continue
        number, token = one
        if number < 0:
            yield f'<li><div class="leaf dim">{_measure(token)}{_bdi(token)}</div>\n'
            continue
        chain = [number]
        while len(children[chain[-1]]) == 1:
            chain += children[chain[-1]]
        label = _measure(token) + "".join(_bdi(nodes[at]) for at in chain)
        waiting.append("</details>\n")
        waiting += list(_branch(nodes, children, chain[-1]))[::-1]
        waiting.append(f"<li><details open><summary>{label}</summary>")


def _branch(
    nodes: Sequence[Mapping[str, Any]], children: Sequence[Sequence[int]], number: int
) -> Iterator[str | tuple[int, Mapping[str, Any]]]:
    """What may follow a node, likeliest first: those taken, with their numbers, and the others, with -1."""
    found = [(at, nodes[at]) for at in children[number]]
    known = {nodes[at]["id"] for at in children[number]}
    found += [(-1, one) for one in nodes[number]["top"] or () if one["id"] not in known]
    yield "<ul>\n"
    yield from sorted(found, key=lambda one: -math.inf if one[1]["logprob"] is None else one[1]["logprob"], reverse=True)
    yield "</ul>"


def _measure(token: Mapping[str, Any]) -> str:
    """A token's probability, as a number and a bar."""
    probability = _probability(token)
    return f'<span class="p">{100 * probability:.2f}%</span><meter value="{probability:.6f}" aria-hidden="true"></meter>'


def _bdi(token: Mapping[str, Any]) -> str:
    """The token; its direction does not change that of what is around it."""
    rank = "" if token.get("rank") is None else f", rank {token['rank']}"
    return f'<bdi title="{100 * _probability(token):.2f}%{rank}, id {token["id"]}">{_text(token["text"])}</bdi>'


def _probability(token: Mapping[str, Any]) -> float:
    return 0.0 if token["logprob"] is None else math.exp(token["logprob"])


def _text(text: str) -> str:
    return html.escape(escape.name(text))
