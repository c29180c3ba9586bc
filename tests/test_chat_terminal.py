"""`llm chat` on a terminal: what somebody who uses it sees."""

from __future__ import annotations

import json
import re
import signal
import stat
import time
from pathlib import Path

import pytest

from screen import CTRL_C, CTRL_D, LEFT, SENT, UP, Sitting
from test_commands import answer, llm

CHAT = ["-m", "llmcli", "chat"]
ENDLESS = ["--logit-bias", "0=-inf"]
"""The demo's end of text never comes."""
SLOW = ["--device", "reference", *ENDLESS]
"""Some ten tokens a second."""
SHORT = [*CHAT, "-n", "12", "--seed", "3"]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"LLMCLI_HOME": str(tmp_path / "home"), "EDITOR": "true"}


@pytest.fixture(scope="session")
def smol(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, str]:
    """A home with a real model that talks, for those who have its weights."""
    path = data_dir / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    home = tmp_path_factory.mktemp("smol")
    answer(llm(home, "import", str(path), "--quant", "int8", "--name", "smol"))
    return {"LLMCLI_HOME": str(home), "LLMCLI_MODEL": "smol"}


def history(home: dict[str, str]) -> list[str]:
    path = Path(home["LLMCLI_HOME"]) / "data" / "chat" / "history.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_base_model_says_so_and_continues(home: dict[str, str]) -> None:
    with Sitting(SHORT, home) as chat:
        chat.wait_prompt()
        assert "it continues what you write" in " ".join(chat.look())
        chat.enter("Once upon a time")
        assert "there" in chat.look()[-3]
        chat.type(CTRL_D)
        assert chat.end() == 0


def test_run_without_a_prompt_is_a_chat(home: dict[str, str]) -> None:
    with Sitting(["-m", "llmcli", "run", "-n", "5"], home) as chat:
        chat.wait_prompt()
        chat.type("/stats\r")
        chat.wait("0 of 512 tokens")


def test_ctrl_c_stops_the_answer_and_then_clears_the_line_and_then_leaves(home: dict[str, str]) -> None:
    with Sitting([*CHAT, *SLOW], home, columns=200) as chat:
        chat.wait_prompt()
        chat.type("Once upon a time\r")
        chat.wait_answer()
        chat.type(CTRL_C)
        chat.wait_lines("stopped", "", ">>>")
        chat.type("half a line" + CTRL_C)
        chat.wait_lines(">>> half a line", ">>>")
        chat.type(CTRL_C)
        chat.until(lambda _: chat.look()[-2].startswith("Ctrl-C again") and chat.look()[-1] == ">>>")
        chat.type(CTRL_C)
        assert chat.end() == 0
        assert b"Traceback" not in chat.raw


def test_editing(home: dict[str, str]) -> None:
    """Lines, keys, pasting, completion; and what was typed is there the next time."""
    with Sitting(SHORT, home) as chat:
        chat.wait_prompt()
        chat.type("//one\x1b\rtwo\x0athree\\\rfour")
        chat.wait_lines(">>> //one", "... two", "... three", "... four")
        chat.type("\x15\x7f" * 4)
        chat.wait_prompt()
        chat.type("\x1b[200~pasted\nlines\n\x1b[201~")
        chat.wait_lines(">>> pasted", "... lines", "...")  # pasted newlines do not send
        chat.type(CTRL_C)
        chat.type("/sta\t\r")
        chat.wait("tokens")
        chat.type("/stats\x01\x0b/help\r")
        chat.wait("Ctrl-D leaves.")
        chat.type(CTRL_D)
        chat.end()
    assert history(home) == ["/stats", "/help"]
    with Sitting(SHORT, home) as chat:
        chat.wait_prompt()
        chat.type(UP + UP)
        chat.wait(">>> /stats")
    with Sitting([*SHORT, "--no-history"], home) as chat:
        chat.wait_prompt()
        chat.type(UP + "/undo\r")
        chat.wait("nothing to undo")
    assert history(home) == ["/stats", "/help"]


def test_characters_of_every_width_and_long_lines_and_resizing(home: dict[str, str]) -> None:
    with Sitting(SHORT, home, columns=40, rows=20) as chat:
        chat.wait_prompt()
        chat.type("你好 שלום e\u0301|")
        chat.until(lambda _: chat.look()[-1].replace(" ", "") == ">>>你好שלוםé|")
        assert chat.screen.cursor.x == 4 + 4 + 1 + 4 + 1 + 1 + 1
        chat.type(LEFT * 3 + "\x7f")  # the combined letter is two: before it, the space goes
        chat.until(lambda _: chat.look()[-1].endswith("םé|"))
        chat.type("\x05\x15")
        chat.wait_prompt()

        def typed(lines: int) -> str:
            return "".join(line[4:] for line in chat.look()[-lines:] if re.match(r"(>>>|   ) \d", line))

        def at_end(text: str) -> bool:
            return len(typed(10)) >= 60 and text.endswith(typed(10)[-60:])

        for count in range(1, 21):
            chat.type("0123456789")
            chat.until(lambda _, count=count: typed(20) == "0123456789" * count)
        for columns in (30, 70, 40):
            chat.resize(columns, 20)
            for keys, text in (("x", "0123456789" * 20 + "x"), ("\x7f", "0123456789" * 20)):
                chat.type(keys)
                chat.until(lambda _, text=text: at_end(text))
        chat.type(CTRL_C + "/stats\r")
        chat.wait("512 tokens")
        chat.wait_prompt()


def test_a_terminal_of_one_column(home: dict[str, str]) -> None:
    """Nothing can be read there, but keys are, also those of a long line. (What is typed before the editor is there is the terminal's own:
    it makes a newline of Enter, and of Ctrl-D nothing.)"""
    with Sitting(SHORT, home, columns=1) as chat:
        chat.until(lambda _: b"\x1b[?2004h" in chat.raw)
        chat.type("x" * 60 + "\r/stats\r" + CTRL_D)
        assert chat.end() == 0 and b"Traceback" not in chat.raw


def test_waiting_costs_nothing(home: dict[str, str]) -> None:
    with Sitting(SHORT, home) as chat:
        chat.wait_prompt()
        chat.enter("Once")
        chat.wait_idle(0.5)
        before = chat.computing()
        time.sleep(3)
        assert chat.computing() - before <= 0.02


def test_keys_pressed_during_an_answer_do_not_break_it(home: dict[str, str]) -> None:
    with Sitting([*CHAT, "-n", "20", "--seed", "3", *SLOW], home, columns=100) as chat:
        chat.wait_prompt()
        chat.type("Once upon a time\r")
        chat.wait_answer()
        chat.type("QQQQ")
        chat.wait(">>> QQQQ")
        assert "\n".join(chat.look()).count("QQQQ") == 1


def test_a_full_context_is_said_and_nothing_is_dropped_unasked(home: dict[str, str]) -> None:
    with Sitting([*CHAT, "-c", "64", "--seed", "3", *ENDLESS], home, columns=100) as chat:
        chat.wait_prompt()
        chat.type("Once upon a time\r")
        chat.wait("the context of 64 tokens is full: /drop")
        chat.wait_prompt()
        chat.type("The dog\r")
        chat.wait("is full. Drop the oldest turn? [y/N]")
        chat.type("n\r")
        chat.wait("nothing was dropped")
        chat.type("\r")
        chat.wait("Drop the oldest turn? [y/N]")
        chat.enter("y")
        chat.type("/stats\r")
        chat.wait("1 turn")


def test_an_error_does_not_end_a_chat(home: dict[str, str]) -> None:
    with Sitting(SHORT, home, columns=120) as chat:
        chat.wait_prompt()
        chat.type("/fot\r")
        chat.wait("there is no command /fot")
        chat.wait(">>> /fot")
        chat.type("\x15/model nowhere\r")
        chat.wait("llm list shows the models")
        chat.type("\x15/set temp 0.5\r")
        chat.wait_prompt()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(home: dict[str, str], number: int) -> None:
    with Sitting(SHORT, home) as chat:
        chat.wait_prompt()
        chat.kill(number)
        code = chat.end()
        assert code == (143 if number == signal.SIGTERM else -signal.SIGHUP)
        if number == signal.SIGTERM:
            assert chat.raw.rstrip().endswith(SENT), "pasting is as it was"


def test_a_dumb_terminal_gets_no_control_sequence(home: dict[str, str]) -> None:
    with Sitting([*SHORT, "-q"], {**home, "TERM": "dumb"}) as chat:
        chat.wait(">>>")
        chat.type("Once upon a time\n")
        chat.wait("there")
        chat.type(CTRL_D)
        assert chat.end() == 0
        assert b"\x1b" not in chat.raw


def test_markdown_is_drawn_a_block_at_a_time(smol: dict[str, str]) -> None:
    words = [*CHAT, "--markdown", "--temp", "0", "-n", "80", "-c", "1000"]
    with Sitting(words, smol) as chat:
        chat.wait_prompt()
        chat.enter("Give me a list of three fruits with bold names.")
        assert re.search(r"^ +1 \w", "\n".join(chat.look()), re.MULTILINE), "a list is set off, its number without a dot"


def test_five_turns_with_a_real_model(smol: dict[str, str], tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with Sitting([*CHAT, "-n", "40", "--seed", "1"], smol, columns=70, rows=40) as chat:
        chat.wait_prompt()
        chat.enter("My name is Ada. Who are you?")
        chat.enter("/set n default")
        chat.enter("/set logit-bias 0=-inf 2=-inf")  # it would go on for half a minute
        chat.type("Count from one to one thousand in words, one a line.\r")
        chat.wait_answer()
        chat.type(CTRL_C)
        chat.wait("stopped")
        chat.wait_prompt()
        chat.enter("/set logit-bias default")
        chat.enter("/set n 30")
        chat.enter("/set temp 0")
        for question in ("What is my name?", "Say hello in 日本語 and עברית.", "x" * 300):
            chat.enter(question)
        chat.resize(50, 30)
        chat.type("/undo\r")
        chat.wait("the last turn is forgotten")
        chat.enter("\x15Goodbye, then.")
        chat.type(f"/save {saved}\r")
        chat.wait("saved")
        chat.type("/stats\r")
        chat.wait("5 turns")
        chat.type(CTRL_D)
        assert chat.end() == 0
        assert b"Traceback" not in chat.raw
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 5
    assert messages[-2]["content"] == "Goodbye, then." and all(message["content"] for message in messages)
    with Sitting([*CHAT, "--load", str(saved), "--temp", "0", "-n", "10"], smol) as chat:
        chat.wait("5 turns")
        chat.wait_prompt()
        chat.enter("And again")
        chat.type("/stats\r")
        chat.wait("6 turns")
