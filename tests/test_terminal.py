"""What reaches a terminal, a pipe and a closed pipe: with a model that says whatever a test wants."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyte
import pytest

from terminal import FAKE, environment, on_terminal

OSC, ENDS = ("\x1b]", "\x9d"), ("\x07", "\x1b\\", "\x9c")
ATTACKS = [
    "\x1b[31mred\x1b[0m",
    "\x1b]52;c;aGk=\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP+q544e\x1b\\",
    "a\x08\x08b\rc\x7f",
    "\u202eevil\u202c",
    "\u2066x\u2069",
    *(f"\x1b[{number};1{chr(final)}" for number in (1, 99) for final in range(0x40, 0x7F)),
    *(f"{start}{number};t{end}" for start in OSC for number in (0, 2, 4, 7, 9, 10, 11, 50, 104, 777) for end in ENDS),
    *(f"\x1b{start}x\x1b\\" for start in "P_^X"),
    *(f"\x1b{chr(final)}" for final in (*range(0x20, 0x3F), *range(0x60, 0x7F))),
    *(chr(code) for code in (*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))),
]
"""Of all kinds that terminals know: CSI, OSC, DCS, APC, PM, SOS, single ones, C0, C1, directions."""


def _pieces() -> list[str]:
    """Every attack whole and cut at every character. (Half a character never gets so far: test_stream.py.)"""
    pieces = []
    for attack in ATTACKS:
        for cut in range(len(attack)):
            pieces += [attack[:cut], attack[cut:], "\n"]
    return pieces


def test_there_are_three_hundred_attacks() -> None:
    assert len(set(ATTACKS)) >= 300


def test_a_terminal_never_gets_what_it_would_obey() -> None:
    code, shown = on_terminal([FAKE, "run", "hi", "-q"], {"FAKE_TEXTS": json.dumps(_pieces())})
    assert code == 0
    text = shown.decode()
    assert "\\x1b[31mred" in text and "\\x9d0;t" in text and "\\u202e" in text
    assert not [c for c in text.replace("\r\n", "\n") if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066")]


def test_a_pipe_gets_the_text_unchanged() -> None:
    pieces = _pieces()
    spoken = environment({"FAKE_TEXTS": json.dumps(pieces)})
    done = subprocess.run([sys.executable, FAKE, "run", "hi", "--no-stdin"], env=spoken, capture_output=True, timeout=20)
    assert done.stdout.decode() == "".join(pieces)
    assert done.stderr == b""


def test_names_in_messages_are_filtered() -> None:
    code, shown = on_terminal([FAKE, "run", "hi"], {"FAKE_TEXTS": '["raise"]', "FAKE_ERROR": r"ValueError('\x1b]0;x\x07 a\nb')"})
    assert code == 70
    message = shown.split(b"error:")[1].replace(b"\x1b[0m", b"")
    assert b"\\x1b]0;x\\x07 a\\nb" in message
    assert b"\x1b" not in message and message.count(b"\n") == 1


def test_the_prompt_is_shown_before_its_continuation() -> None:
    screen = pyte.Screen(40, 5)
    code, shown = on_terminal([FAKE, "run", "Once upon"], {"FAKE_TEXTS": '[" a", " time"]'})
    pyte.ByteStream(screen).feed(shown)
    assert code == 0
    assert screen.display[0].rstrip() == "Once upon a time"


def test_errors_are_red_only_where_colours_are_wanted() -> None:
    words = [FAKE, "run", "hi", "--temp", "x"]
    assert b"\x1b[1;31m" in on_terminal(words)[1]
    assert b"\x1b" not in on_terminal(words, {"NO_COLOR": "1"})[1]
    assert b"\x1b" not in on_terminal(words, {"TERM": "dumb"})[1]
    assert b"\x1b" not in on_terminal([*words, "--color", "never"])[1]
    piped = subprocess.run([sys.executable, *words], env=environment({}), capture_output=True, timeout=20)
    assert b"\x1b" not in piped.stderr


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_with_the_text_so_far(number: int, expected: int) -> None:
    slow = {"FAKE_TEXTS": '["word "]', "FAKE_REPEAT": "1000", "FAKE_DELAY": "0.05"}
    start = time.monotonic()
    code, shown = on_terminal([FAKE, "run", "hi"], slow, b"word word", number)
    assert code == expected
    assert b"word word" in shown and b"Traceback" not in shown
    assert shown.endswith(b"\n") and time.monotonic() - start < 25  # the whole answer takes 50 s
    code, shown = on_terminal([FAKE, "run", "hi", "--no-stream", "--stop", "x"], {**slow, "FAKE_DELAY": "0"})
    assert code == 0 and shown.count(b"word") == 1000


def test_an_interrupted_answer_leaves_no_file(tmp_path: Path) -> None:
    words = [FAKE, "run", "hi", "-o", str(tmp_path / "out.txt"), "--stats"]
    slow = {"FAKE_REPEAT": "1000", "FAKE_DELAY": "0.05"}
    process = subprocess.Popen([sys.executable, *words], env=environment(slow), stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert os.listdir(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert os.listdir(tmp_path) == []


def test_the_answer_goes_where_a_link_leads_and_never_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/answer")
    for name, code in (("link", 0), ("folder", 7), ("x" * 250, 0)):
        words = [sys.executable, FAKE, "run", "hi", "--no-stdin", "-o", str(tmp_path / name)]
        done = subprocess.run(words, env=environment({}), capture_output=True, timeout=20)
        assert done.returncode == code and done.stderr.count(b"\n") == (code != 0)
    assert (tmp_path / "folder" / "answer").read_text() == "ok\n" and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "x" * 250]


@pytest.mark.parametrize("words", [["run", "hi"], ["run", "hi", "--json"], ["run", "hi", "--jsonl"], ["run", "--help"], ["--help"]])
def test_a_closed_pipe_is_silent(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    many = {"FAKE_TEXTS": '["line\\n"]', "FAKE_REPEAT": "5000"}
    with subprocess.Popen(
        [sys.executable, FAKE, *words], env=environment(many), stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        message = process.communicate(timeout=20)[1]
    os.close(writer)
    assert (process.returncode, message) == (141, b"")


def test_a_pipe_closed_halfway_is_silent() -> None:
    command = f"{sys.executable} {FAKE} run hi --no-stdin | head -1; echo ${{PIPESTATUS[0]}}"
    many = environment({"FAKE_TEXTS": '["line\\n"]', "FAKE_REPEAT": "20000"})
    done = subprocess.run(["bash", "-c", command], env=many, capture_output=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"line\n141\n", b"")


def test_a_full_disk_is_an_error_of_the_disk() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, FAKE, "run", "hi", "--no-stdin"], env=environment({}), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 7
    assert done.stderr.startswith(b"llm: error: cannot write standard output:") and done.stderr.count(b"\n") == 1
    words = [sys.executable, FAKE, "run", "hi", "--no-stdin", "-o", "/dev/full"]
    done = subprocess.run(words, env=environment({}), capture_output=True, timeout=20)
    assert done.returncode == 7 and done.stderr.startswith(b"llm: error: cannot write /dev/full:")


def test_a_file_that_grows_too_large_is_an_error_of_the_disk(tmp_path: Path) -> None:
    command = f"ulimit -f 8; {sys.executable} {FAKE} run hi --no-stdin -o {tmp_path}/answer"
    many = environment({"FAKE_TEXTS": '["line\\n"]', "FAKE_REPEAT": "20000"})
    done = subprocess.run(["bash", "-c", command], env=many, capture_output=True, timeout=30)
    assert done.returncode == 7 and b"answer: File too large" in done.stderr and done.stderr.count(b"\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_closed_standard_output_is_an_error() -> None:
    command = f"{sys.executable} {FAKE} run hi --no-stdin >&-"
    done = subprocess.run(["bash", "-c", command], env=environment({}), capture_output=True, timeout=30)
    assert done.returncode == 7
    assert b"standard output: it is closed" in done.stderr


def test_the_locale_does_not_matter() -> None:
    for extra in ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}):
        done = subprocess.run(
            [sys.executable, FAKE, "run", "hi", "--no-stdin"],
            env=environment({"FAKE_TEXTS": json.dumps(["日本語 é 👩\u200d👧"]), **extra}),
            capture_output=True,
            timeout=20,
        )
        assert done.stdout.decode() == "日本語 é 👩\u200d👧\n"
