"""`llm chat` and `llm run` where nobody sits at a terminal: pipes, files, closed and silent standard input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from llmcli.cli.app import main
from terminal import FAKE, environment, on_terminal

CHAT = ["chat", "-n", "8", "--seed", "5", "-q"]


def chat(*words: str, text: str, code: int = 0) -> tuple[str, str]:
    """What `llm chat` writes to standard output and standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", write_through=True) for data in (text.encode(), b"", b"")]
    with mock.patch.object(sys, "stdin", streams[0]), redirect_stdout(streams[1]), redirect_stderr(streams[2]):
        done = main([*CHAT, *words])
    out, error = (stream.buffer.getvalue().decode() for stream in streams[1:])  # type: ignore[attr-defined]
    assert done == code, error
    assert "\x1b" not in out + error and "Traceback" not in error
    return out, error


def test_a_line_is_a_message() -> None:
    one, _ = chat(text="Once upon a time")
    both, error = chat(text="Once upon a time\n\n  \n/stats\nThe dog\n")
    assert both.startswith(one) and both.count("\n") == 2 and one.count("\n") == 1
    assert "context     " in error and ">>>" not in both + error


def test_a_message_of_several_lines_and_one_with_a_slash(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    chat(text=f"One\\\ntwo\n//tmp is\n/save {path}\n")
    users = [message["content"] for message in json.loads(path.read_text())["messages"] if message["role"] == "user"]
    assert users == ["One\ntwo", "/tmp is"]


def test_commands_work(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    asked = f"Once\n/set temp 0\n/regenerate\nThen\n/undo\n/probs 2\n/regenerate\n/save {path}\n/set\n/load {path}\n/drop\n/stats\n/help"
    out, error = chat(text=asked)
    first, greedy, _, again = out.splitlines()
    assert greedy == again and greedy.strip() and first.strip()
    assert json.loads(path.read_text())["messages"][1]["content"] == greedy
    assert json.loads(path.read_text())["settings"] == {"temperature": 0.0, "max_tokens": 8, "seed": 7, "probs": 2}
    assert error.count(" | ") == 8, "a line a token"
    assert "temp                0.0\n" in error and "0 turns" in error and "/regenerate" in error


def test_another_answer_is_another_one_and_comes_again() -> None:
    asked = "Once upon a time\n/regenerate\n/regenerate\n"
    answers, _ = chat("--temp", "3", "--min-p", "0", text=asked)
    assert len(set(answers.splitlines())) == 3
    assert chat("--temp", "3", "--min-p", "0", text=asked)[0] == answers


def test_another_model_goes_on() -> None:
    out, error = chat(text="Once upon a time\n/model demo:int8\nThen\n/stats\n")
    assert "2 turns" in error and out.count("\n") == 2


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("/foo", 2, "there is no command /foo"),
        ("/statz", 2, "Did you mean /stats?"),
        ("/stats now", 2, "it takes nothing behind it"),
        ("/save", 2, "it needs its FILE"),
        ("/set temp 1000", 2, "from 0 to 100"),
        ("/set stop 'x", 2, "No closing quotation"),
        ("/set logit-bias 5000=1", 2, "the model has no token 5,000"),
        ("/system Be kind", 2, "has no chat template"),
        ("/undo", 2, "nothing to undo"),
        ("/drop", 2, "nothing to drop"),
        ("/regenerate", 2, "there is no answer yet"),
        ("/model nowhere", 4, "nowhere"),
        ("/load nowhere", 4, "nowhere"),
        ("/save /dev/null/x", 7, "cannot be written"),
        ("word " * 600, 8, "does not fit"),
    ],
)
def test_a_script_ends_with_the_first_error(text: str, code: int, message: str) -> None:
    out, error = chat(text=f"{text}\nOnce\n", code=code)
    assert out == "" and error.startswith("llm: error: ") and message in error and error.count("\n") == 1


def test_nothing_is_dropped_where_nobody_can_be_asked() -> None:
    out, error = chat("-c", "32", "--logit-bias", "0=-inf", text="One two three four five six\nSeven eight nine ten\n" * 3, code=8)
    assert "context of 32 tokens is full: the oldest turn would have to go" in error
    _, error = chat("-c", "32", "--logit-bias", "0=-inf", text="One two three four five six\n/drop\nSeven eight\n/stats\n")
    assert "1 turn\n" in error


def shell(command: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    script = f'llm() {{ {sys.executable} "$LLM" "$@"; }}; {command}'
    spoken = environment({"LLM": FAKE, "FAKE_TEXTS": '"prompt"'} | extra)
    return subprocess.run(["bash", "-c", script], env=spoken, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "prompt"),
    [
        ("echo text | llm run summarise", "text\nsummarise"),
        ("echo text > x; llm run < x", "text"),
        ("echo text > x; llm run -f x", "text"),
        ("echo text > x; llm run -f x < /dev/null", "text"),
        ("llm run hi < /dev/null", "hi"),
        ("llm run hi <&-", "hi"),
        ("echo text > x; llm run -f x <&-", "text"),
        ("sleep 4 | llm run hi", "hi"),
        ("echo text | setsid " + sys.executable + ' "$LLM" run', "text"),
    ],
)
def test_run_takes_its_text_from_anywhere(command: str, prompt: str, tmp_path: Path) -> None:
    start = time.monotonic()
    done = shell(f"cd {tmp_path}; {command}")
    assert done.stdout.decode() == repr(prompt) + "\n", done.stderr
    assert b"\x1b" not in done.stdout + done.stderr and time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("llm run < /dev/null", 8, "the text is empty"),
        ("llm run <&-", 2, "no text"),
        ("llm chat <&-", 2, "standard input is closed"),
    ],
)
def test_no_text_at_all_is_said(command: str, code: int, message: str) -> None:
    done = shell(command)
    assert done.returncode == code and message in done.stderr.decode() and done.stdout == b""


def test_chat_without_a_word_is_over_at_once() -> None:
    assert chat(text="") == ("", "")


@pytest.mark.parametrize("words", [["--json"], ["-o", "x"], ["--no-stream"], ["--no-stdin"]])
def test_on_a_terminal_what_is_for_scripts_needs_a_prompt(words: list[str]) -> None:
    code, shown = on_terminal([FAKE, "run", *words])
    assert code == 2 and b"no text: standard input is a terminal. Give one as an argument" in shown
