"""Documents on a terminal: laid out, paged where there is a pager, and left early without harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcli.cli.pager import layout
from terminal import on_terminal

DOCS = ["-m", "llmcli", "docs"]


def test_markdown_is_laid_out() -> None:
    shown = layout("# Title\n\nA [link](json.md#x), a [page](https://example.org) and `code`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", False)
    assert "\x1b" not in shown and "json.md" not in shown and "link" in shown and "https://example.org" in shown
    assert "|" not in shown and all(line == line.rstrip() for line in shown.splitlines())
    assert "\x1b[" in layout("# Title", True)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["doctor"], {"PAGER": "cat"}),
        (["doctor", "--no-pager"], {"PAGER": "false"}),
        (["doctor"], {"PAGER": "no-such-program"}),
        (["doctor", "--color", "never"], {"PAGER": "cat"}),
    ],
)
def test_a_terminal_shows_the_whole_document(words: list[str], settings: dict[str, str]) -> None:
    code, shown = on_terminal([*DOCS, *words], settings)
    assert code == 0
    assert b"llm doctor" in shown and b"problem" in shown and b"| ---" not in shown and b"##" not in shown
    assert (b"\x1b[" in shown) == ("never" not in words)


def test_a_pager_may_be_left_early(tmp_path: Path) -> None:
    program = tmp_path / "leave"
    program.write_text("#!/bin/sh\nhead -c 10\n")
    program.chmod(0o755)
    code, shown = on_terminal([*DOCS, "commands"], {"PAGER": str(program)})
    assert code == 0 and b"Traceback" not in shown and b"error" not in shown


def test_the_pager_gets_options_that_it_is_not_given(tmp_path: Path) -> None:
    program = tmp_path / "less"
    program.write_text('#!/bin/sh\ncat >/dev/null\necho "options $LESS"\n')
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAGER": ""}
    assert b"options -FRX" in on_terminal([*DOCS, "json"], path)[1]
    assert b"options -i" in on_terminal([*DOCS, "json"], {**path, "LESS": "-i"})[1]
