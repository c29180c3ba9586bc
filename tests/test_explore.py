"""`llm explore` on a real terminal: keys, screens of any size, pipes, signals; and what it says where it cannot be."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmcli.cli.app import main
from screen import BACKSPACE, CTRL_C, DOWN, ENTER, ESCAPE, HOME, UP, Sitting
from terminal import environment, on_terminal

needs_textual = pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="textual is not installed (llmcli[explore])")
WORDS = ["-m", "llmcli", "explore"]
CAT = [*WORDS, "The cat sat on the", "--seed", "1"]
READY = "entropy"
ENDLESS = ["--device", "reference", "--logit-bias", "0=-inf", "-n", "100000"]
"""The text never ends, and nobody misses how it is written: some ten tokens a second."""


class Explorer(Sitting):
    def __init__(self, words: Sequence[str], columns: int = 80, rows: int = 24, stdin: bytes | None = None) -> None:
        super().__init__(words, {}, columns, rows, stdin)


def rows(screen: str) -> list[str]:
    """The tokens of the outline's rows."""
    return re.findall(r"%\s+[█▏▎▍▌▋▊▉]+\s+(.*\S)", screen)


def chosen(screen: str) -> str:
    found = re.search(r"^❯.*%\s+[█▏▎▍▌▋▊▉]*\s*(.*)$", screen, re.MULTILINE)
    assert found, screen
    return found[1].strip()


@needs_textual
def test_take_and_back() -> None:
    with Explorer(CAT) as terminal:
        screen = terminal.wait(READY)
        assert screen.startswith("The cat sat on the\n") and rows(screen)[:3] == ["␣grass", "␣table", "␣ground"]
        terminal.type(DOWN + DOWN + UP)
        terminal.until(lambda text: chosen(text) == "␣table")
        terminal.type(ENTER)
        first = rows(terminal.until(lambda text: "sat on the table\n" in text and "1 token," in text and READY in text))
        terminal.type(BACKSPACE)
        screen = terminal.until(lambda text: "sat on the\n" in text and "token," not in text and "%" in text)
        assert chosen(screen).startswith("␣table")  # where one came from
        terminal.type(ENTER)
        assert rows(terminal.until(lambda text: "on the table\n" in text and "1 token," in text and "%" in text)) == first
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.raw.endswith(b"The cat sat on the table\r\n")
        assert b"\x1b[?1049l" in terminal.raw


@needs_textual
def test_write_expand_and_save(tmp_path: Path) -> None:
    with Explorer([*CAT, "-n", "10", "--expand", "9", "-o", str(tmp_path / "a.json")]) as terminal:
        terminal.wait(READY)
        terminal.type("g")
        terminal.until(lambda text: "10 tokens," in text and READY in text)
        terminal.type(HOME + "e")
        terminal.until(lambda text: len(rows(text)) > 12 and "tokens," not in text and READY in text)

        def ask(*parts: str) -> None:
            """What each part of a name leaves is seen before the next is typed."""
            terminal.type("s")
            terminal.wait("save the tree as")
            for keys, shown in zip(parts[::2], parts[1::2], strict=True):
                terminal.type(keys)
                terminal.until(lambda text, shown=shown: ("\n" + text.splitlines()[-3]).endswith(shown))

        ask()
        terminal.type(ENTER)
        terminal.wait("saved")
        ask(BACKSPACE * 4, "a.", "html", "a.html")
        terminal.type(ENTER)
        terminal.wait("saved")
        assert (tmp_path / "a.html").exists()
        ask()
        terminal.type(ENTER)
        terminal.wait("Enter writes over it")
        terminal.type(ENTER)
        terminal.wait("saved")
        ask(BACKSPACE * 200 + "-", "\n-", BACKSPACE + "/nowhere/at/all.json", "/nowhere/at/all.json")
        terminal.type(ENTER)
        terminal.wait("cannot write /nowhere")
        ask("q", "a.htmlq")  # a letter of a name ends nothing
        terminal.type(ESCAPE)
        terminal.until(lambda text: "a.htmlq" not in text and READY in text)
        terminal.type("q")
        assert terminal.end() == 0
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert len(found["nodes"]) == 1 + 10 + 9 and found["settings"]["seed"] == 1
    assert "<details" in (tmp_path / "a.html").read_text("utf-8")


@needs_textual
def test_keys_take_effect_in_their_order_however_fast(tmp_path: Path) -> None:
    """All at once: each is a key, or a letter of a name, by what those before it have done."""
    with Explorer([*CAT, "-o", str(tmp_path / "tree.html")]) as terminal:
        terminal.wait(READY)
        terminal.type("s" + BACKSPACE * len("tree.html") + "sqg.json" + ENTER + DOWN + ENTER + "s" + ENTER + ENTER + "q")
        assert terminal.end() == 0
        assert terminal.raw.endswith(b"The cat sat on the table\r\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sqg.json"]
    assert [node["text"] for node in json.loads((tmp_path / "sqg.json").read_text("utf-8"))["nodes"]] == [None, " table"]


@needs_textual
def test_any_size_of_terminal() -> None:
    with Explorer(CAT) as terminal:
        terminal.wait(READY)
        for columns, lines in ((40, 10), (1, 1), (3, 2), (200, 60), (7, 40), (100, 3), (80, 24)):
            terminal.resize(columns, lines)
            terminal.type(DOWN + ENTER + BACKSPACE)
        terminal.until(lambda text: "q quit" in text and READY in text)
        terminal.type("q")
        assert terminal.end() == 0
        assert b"Traceback" not in terminal.raw
    with Explorer(CAT, columns=2, rows=1) as terminal:
        terminal.until(lambda _: b"\x1b[?1049h" in terminal.raw)
        terminal.resize(80, 24)
        terminal.wait(READY)


@needs_textual
def test_text_that_a_terminal_would_obey_or_misplace() -> None:
    text = "a\x1b[31mb\x07 \u202eevil 日本語 שלום e\u0301\u200b 👩‍👩‍👧 \t."
    with Explorer([*WORDS, text]) as terminal:
        screen = terminal.wait(READY)
        assert r"a\x1b[31mb\x07 \u202eevil" in screen and "日" in screen and "שלום" in screen
        assert "\u202e".encode() not in terminal.raw and b"\x07 " not in terminal.raw
        assert len(rows(screen)) == 12
        terminal.type("q")
        assert terminal.end() == 0


@needs_textual
def test_text_from_a_pipe_and_keys_from_the_terminal() -> None:
    with Explorer([*WORDS], stdin=b"Once upon a\n") as terminal:
        terminal.until(lambda text: READY in text and text.startswith("Once upon a\n"))
        terminal.type(ENTER)
        terminal.until(lambda text: text.startswith("Once upon a time\n") and READY in text)
        terminal.type("q")
        assert terminal.end() == 0


@needs_textual
@pytest.mark.parametrize(("how", "code"), [(CTRL_C, 130), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_leaving_in_the_middle_of_work(how: str | signal.Signals, code: int) -> None:
    """At once, with the terminal as it was and nothing on standard output."""
    with Explorer([*CAT, *ENDLESS]) as terminal:
        terminal.wait(READY)
        terminal.type("g")
        terminal.wait("writing")
        if isinstance(how, str):
            terminal.type(how)
        else:
            terminal.kill(how)
        assert terminal.end(30) == code  # to the end of the context it would be some 50 s
        after = terminal.raw[terminal.raw.rindex(b"\x1b[?1049l") :]
        assert b"Traceback" not in terminal.raw and b"The cat" not in after and b"error" not in after


@needs_textual
def test_a_job_can_be_ended_and_replaced() -> None:
    with Explorer([*CAT, *ENDLESS]) as terminal:
        terminal.wait(READY)
        terminal.type("g")
        terminal.until(lambda text: re.search(r"writing.* \d+ tokens", text))
        terminal.type(ESCAPE)
        terminal.until(lambda text: "writing" not in text)
        terminal.type(HOME + DOWN + ENTER)
        terminal.until(lambda text: "1 token," in text and READY in text)
        terminal.type("q")
        assert terminal.end() == 0


@needs_textual
def test_the_end_of_the_context_is_said() -> None:
    with Explorer([*CAT, "-c", "8", "-n", "50"]) as terminal:
        terminal.wait(READY)
        terminal.type("g")
        terminal.wait("does not fit")
        terminal.type(BACKSPACE)
        terminal.wait(READY)


def test_without_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, *CAT], stdin=subprocess.DEVNULL, capture_output=True, env=environment({}), timeout=60, start_new_session=True
    )
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"") and message.count("\n") == 1
    assert "terminal" in message or "pip install 'llmcli[explore]'" in message


@needs_textual
def test_no_terminal_for_keys() -> None:
    """A pipe as standard input, and no terminal behind the process."""
    master, slave = os.openpty()
    done = subprocess.run(
        [sys.executable, *WORDS], input=b"Once", stdout=slave, stderr=slave, env=environment({}), timeout=60, start_new_session=True
    )
    os.close(slave)
    message = os.read(master, 10_000).decode()
    os.close(master)
    assert done.returncode == 2 and "no terminal for the keys" in message and message.count("\n") == 1


def test_without_textual(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "textual" else find(name, *more))
    assert main(["explore", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "pip install 'llmcli[explore]'" in captured.err and captured.err.count("\n") == 1


def test_help_needs_no_textual() -> None:
    code, shown = on_terminal(["-X", "importtime", *WORDS, "--help"])
    assert code == 0 and b"Enter" in shown and b"textual" not in shown.replace(b"textual is", b"").split(b"Usage")[0]
