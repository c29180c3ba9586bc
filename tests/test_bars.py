"""The table of `llm next`: aligned, readable, harmless."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest

from llmcli.cli import bars, units


def candidate(rank: int, text: str, prob: float, data: bytes | None = None, removed_by: str | None = None) -> Any:
    return SimpleNamespace(
        rank=rank,
        id=rank * 1000,
        text=text,
        bytes=text.encode() if data is None else data,
        logit=-1.5 * rank,
        logprob=math.log(prob),
        prob=prob,
        final_prob=0.0 if removed_by else prob,
        removed_by=removed_by,
    )


CANDIDATES = [
    candidate(1, " the", 0.6),
    candidate(2, "日本", 0.2),
    candidate(3, "\ufffd", 0.1, b"\xe2\x82"),
    candidate(4, "\x1b[31m\n", 0.05, removed_by="top_k"),
    candidate(5, "e\u0301👩", 1e-7, removed_by="top_k"),
]


def test_columns_are_aligned_and_nothing_is_obeyed() -> None:
    lines = bars.table(CANDIDATES, color=False).splitlines()
    assert lines[0].split() == ["rank", "token", "id", "probability", "logit", "cumulative", "drawn"]
    assert "␣the" in lines[1] and "<e2> <82>" in lines[3] and "\\x1b[31m\\n" in lines[4]
    assert "\x1b" not in "".join(lines)
    ends = {bars.width(line[: re.search(r"\d+\.\d\de?-?\d*%|\d\.\de-\d\d%", line).end()]) for line in lines[1:]}  # type: ignore[union-attr]
    assert len(ends) == 1
    assert lines[4].endswith("top_k") and lines[1].endswith("60.00%")


def test_a_bar_is_as_long_as_the_share_of_the_likeliest() -> None:
    lines = bars.table(CANDIDATES, color=False).splitlines()
    lengths = [line.count("█") for line in lines[1:]]
    assert lengths == [bars.BAR, 6, 3, 1, 0]
    assert "▏" in lines[5]  # possible, if barely


@pytest.mark.parametrize("columns", [100, 80, 60, 40, 30])
def test_the_table_fits_in_the_terminal(columns: int) -> None:
    tokens = [*CANDIDATES, candidate(6, "\u65e5" * 60, 1e-8)]
    lines = bars.table(tokens, color=False, columns=columns).splitlines()
    assert all(bars.width(line) <= columns for line in lines)
    assert len({bars.width(line) for line in lines[1:] if "%" in line.rstrip()[-1:]}) == 1  # still aligned
    assert "token" in lines[0] and "drawn" in lines[0] and "…" in lines[6] and "60.00%" in lines[1]
    assert ("cumulative" in lines[0]) == (columns >= 80) and ("█" in lines[1]) == (columns >= 60)


def test_colors_are_extra() -> None:
    colored = bars.table(CANDIDATES, color=True)
    assert re.sub(r"\x1b\[\d*m", "", colored) == bars.table(CANDIDATES, color=False)


@pytest.mark.parametrize(
    ("text", "data", "shown"),
    [
        (" a b", b" a b", "␣a␣b"),
        ("\t", b"\t", "\\t"),
        ("", b"", "(nothing)"),
        ("\ufffd", "\ufffd".encode(), "\ufffd"),
        ("\ufffd", b"\xff", "<ff>"),
        ("\u202e", "\u202e".encode(), "\\u202e"),
    ],
)
def test_a_token_made_visible(text: str, data: bytes, shown: str) -> None:
    assert bars.visible(text, data) == shown


def test_probabilities() -> None:
    assert [bars.percent(p) for p in (1.0, 0.12345, 0.0001, 0.00001234, 0.0)] == ["100.00%", "12.35%", "0.01%", "1.2e-03%", "0%"]


def test_sizes() -> None:
    assert [units.size(n) for n in (0, 999, 1024, 1536, 500 * 2**20, 2**30, 2**51)] == [
        "0 B",
        "999 B",
        "1.0 KiB",
        "1.5 KiB",
        "500 MiB",
        "1.0 GiB",
        "2,048.0 TiB",
    ]
