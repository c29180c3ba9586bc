"""docs/reliability.md is true: every case is there, every test that it names exists, its counts are those of its table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "reliability.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d+) \| (P[012]) \| (.+?) \| (.+?) \| (.*) \|$", TEXT, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT)))


LISTED, FOUND = ROWS[:100], ROWS[100:]
"""The cases that the project began with, and those that its own tests added."""


def test_all_cases_are_there() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1)) and len(LISTED) == 100
    assert {status for *_, status, _ in FOUND} == {"passed"}
    for number, _, _, status, tests in ROWS:
        assert status in ("passed", "partly") and tests or re.fullmatch("not yet: (batch|server|GPU)", f"{status}{tests}"), number


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    path = next(folder / file for folder in (HERE, HERE.parent) if (folder / file).is_file())
    defined = {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}
    assert {name for other, name in NAMED if other == file} <= defined


def test_the_counts_are_those_of_the_table() -> None:
    statuses = [status.partition(":")[0] for _, _, _, status, _ in LISTED]
    first = [level for _, level, _, status, _ in LISTED if status == "passed"].count("P0")
    counts = "{} of 100 cases passed\\*\\* \\({} of the {} that are P0\\), {} partly, {} not yet".format(
        statuses.count("passed"), first, [row[1] for row in LISTED].count("P0"), statuses.count("partly"), statuses.count("not yet")
    )
    assert re.search(counts, TEXT)


def test_the_invariants_are_those_of_the_harness() -> None:
    checked = set(re.findall(r'f"(\d) \(', (HERE / "harness.py").read_text("utf-8")))
    assert checked == set(re.findall(r"^(\d)\. ", TEXT, re.MULTILINE)) == set("1234567")
