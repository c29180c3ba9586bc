"""Cases 60, 61, 64, 65: what every command that shows strangers' text does on a terminal, and where nobody reads any more."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from harness import assert_clean, attempt, snapshot
from made import models

from llmcli.cli.chat_render import Markdown
from llmcli.cli.console import Answer
from llmcli.text.thinking import Piece
from terminal import environment, on_terminal

ATTACKS = [
    *("\x1b]0;t\x07", "\x1b[35;9mpurple", "\x9b2J", "\x1b]52;c;aGk=\x07", "\x1bP+q544e\x1b\\"),
    *("\x08\x7f\x0e", "\u202eevil", "[bold]x[/bold]"),
]
TEXT = " ".join(f"once {attack} upon" for attack in ATTACKS)
OWN = re.compile(rb"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[lh]|\r")
"""Colours and what moves a bar of progress, which are ours: the attack's own is told apart by its number."""
M = ["-m", "tiny:none"]
SHOWING = {
    "run": ["run", *M, "-n", "3", TEXT],
    "next": ["next", *M, TEXT],
    "choices": ["next", *M, "Once", "--choices", f"{TEXT},a"],
    "score": ["score", *M, TEXT],
    "score a line a token": ["score", *M, "--table", TEXT],
    "diff": ["diff", "-m", "tiny:none", "-m", "tiny:none", TEXT],
    "attend": ["attend", *M, TEXT],
    "lens": ["lens", *M, TEXT],
    "tokenize": ["tokenize", *M, TEXT],
    "tokenize as JSON": ["tokenize", *M, "--json", TEXT],
    "candidates": ["run", *M, "-n", "2", "--candidates", "2", TEXT],
    "stop": ["run", *M, "-n", "2", "--stop", TEXT, "--stats", "Once"],
    "no command": [TEXT],
    "no option": ["run", f"--{TEXT}"],
    "a bad value": ["run", "--temp", TEXT],
    "no such model": ["show", TEXT],
}


def obeyed(shown: bytes) -> list[str]:
    """What a terminal got that is more than text and our own colours."""
    assert b"\x1b[35;9m" not in shown
    text = OWN.sub(b"", shown).decode()
    return [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066")]


@pytest.mark.parametrize("name", SHOWING)
def test_commands_that_show_a_text(original: Path, name: str) -> None:
    """Case 64: it is shown, not obeyed, and square brackets are no markup."""
    code, shown = on_terminal(["-m", "llmcli", *SHOWING[name]], {"LLMCLI_HOME": str(original / "home"), "COLUMNS": "300"})
    assert code in (0, 2, 4), shown
    assert obeyed(shown) == [] and b"Traceback" not in shown
    if name not in ("next", "lens", "diff", "candidates", "choices", "stop"):
        assert b"\\x1b" in shown or b"\\u001b" in shown, "it is not left out"


def test_commands_that_show_names(case: Path) -> None:
    """Case 65: a file of ours whose name and header are a stranger's."""
    name = "x\x1b]0;t\x07\u202e"
    shutil.copy(models(case) / "tiny-none.safetensors", models(case) / f"{name}-none.safetensors")
    (models(case) / f"{name}2-int8.safetensors").write_bytes(b"damaged")
    for words in (["list"], ["list", "--json"], ["verify"], ["show", f"{name}:none"], ["rm", name], ["doctor"], ["clean", "--dry-run"]):
        code, shown = on_terminal(["-m", "llmcli", *words], {"LLMCLI_HOME": str(case / "home")})
        assert code in (0, 2, 3, 4), shown
        assert obeyed(shown) == [] and b"Traceback" not in shown


def test_what_markdown_has_another_name_for() -> None:
    """Case 64: what is drawn has characters that the text did not have."""
    text = "&#x202e;evil &#27;[35;9m &#x9b;2J &#13;over &NewLine; `&#x202e;` **bold** \x1b[35;9m &lt;b&gt;"
    text += "\n\n| a&#x2066; |\n| --- |\n| &#8; |\n"
    for color in (True, False):
        shown = io.BytesIO()
        writer = Markdown(Answer(shown, terminal=True), color)
        for character in text:  # a token each
            writer.step(cast(Any, None), [Piece("answer", character)], "")
        writer.stop()
        drawn = shown.getvalue()
        assert obeyed(drawn) == [] and b"\\u202e" in drawn and b"<b>" in drawn and (b"\x1b[1m" in drawn) == color


def test_there_are_no_control_codes_where_there_is_no_terminal(case: Path) -> None:
    """Case 66, and where colours are not wanted."""
    variables = {"LLMCLI_HOME": str(case / "home"), "COLUMNS": "100"}
    quantize = ["quantize", "tiny:none", "--quant"]
    for words in (
        [*quantize, "int8"],
        ["run", *M, "-n", "5", "--stats", "--probs", "2", "a"],
        ["score", *M, "a b c"],
        ["list"],
        ["doctor"],
        ["verify"],
    ):
        done = attempt(words, case / "home")
        assert done.code in (0, 7) and not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", done.out + done.err), words
    for words, extra in (
        ([*quantize, "int4"], {"NO_COLOR": "1"}),
        (["score", *M, "a b c"], {"NO_COLOR": "1"}),
        (["score", *M, "a"], {"TERM": "dumb"}),
    ):
        code, shown = on_terminal(["-m", "llmcli", *words], {**variables, **extra})
        assert code == 0 and b"\x1b" not in shown and b"\r" not in shown.replace(b"\r\n", b""), shown


PLACES = {
    "a closed pipe for both": ("2>&1 | exec 0<&-; exit ${PIPESTATUS[0]}", (0, 141)),
    "nobody reads errors": ("2>/dev/full", (0,)),
    "no standard error": ("2>&-", (0,)),
    "neither": (">&- 2>&-", (7,)),
    "no input": ("<&-", (0,)),
    "none of the three": ("<&- >&- 2>&-", (7,)),
}


def test_streams_that_are_not_there(case: Path) -> None:
    """Cases 60, 61: of standard input, output and error, none is needed for a right end."""
    words = ["run", "-m", "tiny:none", "--temp", "0", "-n", "100", "--stats", "Once"]
    own = environment({"LLMCLI_HOME": str(case / "home"), "PYTHONPATH": os.pathsep.join(sys.path)})
    before = snapshot(case)
    for name, (redirection, codes) in PLACES.items():
        command = " ".join([sys.executable, "-m", "llmcli", *words, redirection])
        done = subprocess.run(["bash", "-c", command], env=own, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, cwd=case)
        assert done.returncode in codes, (name, done.returncode, done.stderr)
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr, name
        assert snapshot(case) == before, name
    assert_clean(attempt(words, case / "home"), before, snapshot(case))


def test_an_error_that_nobody_reads_has_its_code(case: Path) -> None:
    own = environment({"LLMCLI_HOME": str(case / "home"), "PYTHONPATH": os.pathsep.join(sys.path)})
    for redirection in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        command = f"{sys.executable} -m llmcli show nothing {redirection}"
        done = subprocess.run(["bash", "-c", command], env=own, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (4, b"", b"")
