"""The command line as scripts see it: what it imports, exit codes, bad values, texts from everywhere, JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli.cli.app import COMMANDS, main
from terminal import FAKE, environment

DOCS = Path(__file__).resolve().parent.parent / "docs"


def llm(*words: str, text: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """The real command, with `text` on a pipe."""
    return _run(["-m", "llmcli", *words], text, extra)


def fake(*words: str, text: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """The command with a model that answers with its prompt."""
    return _run([FAKE, *words], text, {"FAKE_TEXTS": '"prompt"'} | extra)


def _run(words: list[str], text: bytes, extra: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *words], input=text, env=environment(extra), capture_output=True, timeout=60)


def prompt(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr
    return str(eval(done.stdout))


def one_line(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The error line of a command that ended with this exit code and said nothing else."""
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), message
    assert message.startswith("llm: error: ") and message.count("\n") == 1 and "Traceback" not in message
    return message


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'numba', 'llvmlite', 'rich', 'tokenizers', 'jinja2', 'pydantic'}"
    code = f"import sys; from llmcli.cli.app import main; main(['--help']); print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    done = _run(["-c", code], b"", {})
    assert done.stderr == b"[]\n"
    before = os.times()
    assert llm("--help").returncode == 0
    after = os.times()  # computing, not waiting: other work on the machine does not count
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    check = "assert not {'numpy', 'rich', 'tokenizers'} & set(sys.modules)"
    code = f"import sys; from llmcli.cli.app import main; main([{command!r}, '-h']); {check}"
    done = _run(["-c", code], b"", {})
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.isascii() and text.startswith(f"Usage: llm {command}") and COMMANDS[command][1] in text


def test_the_process_ends_in_order() -> None:
    """Not taken apart, but what was registered runs, and nothing that was printed is lost."""
    code = "import atexit, sys; atexit.register(print, 'left'); sys.argv = ['llm', WORD]; from llmcli.cli.app import command; command()"
    done = _run(["-c", code.replace("WORD", "'--version'")], b"", {})
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"llm {llmcli.__version__}\nleft\n", b"")
    assert _run(["-c", code.replace("WORD", "'rum'")], b"", {}).returncode == 2


@pytest.mark.parametrize(("words", "said"), [(["--version"], "False False"), (["run", "-m", "demo", "-n", "1", "Once"], "True True")])
def test_garbage_is_collected_again_when_a_model_is_there(words: list[str], said: str) -> None:
    """A long chat would keep a megabyte for each answer that it draws."""
    state = "gc.get_threshold() == app.USUAL, gc.get_freeze_count() > 0"
    code = f"import atexit, gc, sys; from llmcli.cli import app; atexit.register(lambda: print({state})); sys.argv = ['llm', *{words}]"
    done = _run(["-c", f"{code}; app.command()"], b"", {})
    assert done.returncode == 0 and done.stdout.decode().splitlines()[-1] == said, done.stderr


def test_version_and_overview() -> None:
    assert llm("--version").stdout.decode().strip() == f"llm {llmcli.__version__}"
    assert llm().stdout == llm("-h").stdout == llm("--color", "never", "--help").stdout
    for command, (_, line) in COMMANDS.items():
        assert re.search(f"^  {command} +{re.escape(line)}$", llm().stdout.decode(), re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rum"], "Did you mean"),
        (["Once upon a time"], "llm run"),
        (["--colour"], "--color"),
        (["run", "x", "--tempp", "1"], "--temp"),
        (["run", "x", "--temp", "nan"], "from 0 to 100"),
        (["run", "x", "--temp", "-1"], "from 0 to 100"),
        (["run", "x", "--temp"], "requires an argument"),
        (["run", "x", "-c", "-1"], "'--context'"),
        (["run", "x", "-n", "1e9"], "whole number"),
        (["run", "x", "-n", "1000000000"], "from 0 to 100,000,000"),
        (["run", "x", "--top-p", "1.01"], "from 0 to 1"),
        (["run", "x", "--min-p", "inf"], "from 0 to 1"),
        (["run", "x", "--top-k", "-3"], "--top-k"),
        (["run", "x", "--repeat-penalty", "0"], "from 0.01"),
        (["run", "x", "--seed", "-1"], "--seed"),
        (["run", "x", "--logit-bias", "5"], "ID=X"),
        (["run", "x", "--logit-bias", "5=nan"], "ID=X"),
        (["run", "x", "--logit-bias", "-5=1"], "ID=X"),
        (["run", "- x"], "no such option"),
        (["run", "x", "--threads", "0"], "from 1"),
        (["run", "x", "--color", "blue"], "--color"),
        (["run", "x", "--json", "--jsonl"], "exclude each other"),
        (["run", "x", "--no-stdin", "--device", "abacus"], "here is auto, cpu, cuda, reference"),
        (["run", "several", "words"], "needs quotes"),
        (["next", "x", "-k", "0"], "-k"),
        (["import"], "DIR"),
        (["import", ".", "--quant", "int5"], "int5"),
    ],
)
def test_bad_words_are_refused_in_one_line(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("llm: error: ") and captured.err.count("\n") == 1
    assert hint in captured.err


def test_a_bad_word_is_refused_quickly() -> None:
    before = os.times()
    one_line(llm("run", "x", "--temp", "nan"), 2)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_common_options_go_before_or_after() -> None:
    for words in (["--color", "never", "-q", "run", "hi"], ["run", "-q", "hi", "--color=never"]):
        assert prompt(fake(*words)) == "hi"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("MemoryError()", 7),
        ("OSError(28, 'No space left on device', 'x')", 7),
        ("OSError(12, 'Cannot allocate memory')", 7),
        ("ImportError('x.so: failed to map segment from shared object')", 7),
        ('RuntimeError("can\'t start new thread")', 7),
        (r"ImportError('Original error was: x.so: cannot map zero-fill pages\n')", 7),
        ("SystemError('error return without exception set')", 7),
        ("FileNotFoundError(2, 'No such file or directory', 'x')", 4),
        ("OSError(36, 'File name too long', 'x')", 4),
        ("PermissionError(13, 'Permission denied', 'x')", 4),
        ("RecursionError('too deep')", 70),
        ("ValueError('what')", 70),
        ("__import__('llmcli.errors').errors.CorruptFile('x', 'y')", 3),
        ("__import__('llmcli.errors').errors.NumericalError('x')", 9),
    ],
)
def test_every_failure_is_one_line_and_a_code(error: str, code: int) -> None:
    done = fake("run", "hi", FAKE_TEXTS='["raise"]', FAKE_ERROR=error)
    assert done.returncode == code
    assert done.stderr.startswith(b"llm: error: ") and done.stderr.count(b"\n") == 1


def test_debug_shows_where_it_happened() -> None:
    done = fake("run", "hi", "--debug", FAKE_TEXTS='["raise"]', FAKE_ERROR="ValueError('what')")
    assert b"Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith(b"llm: error: internal: ValueError: what")


def test_every_variable_is_documented() -> None:
    text = (DOCS / "environment.md").read_text("utf-8")
    for path in Path(llmcli.__file__).parent.rglob("*.py"):
        for name in re.findall(r"\b(LLMCLI_[A-Z_]+|NO_COLOR)\b", path.read_text("utf-8")):
            assert f"`{name}`" in text, name


# -- where the text comes from


def test_text_as_an_argument() -> None:
    assert prompt(fake("run", "hi there ")) == "hi there "
    assert prompt(fake("run", "--", "- a list")) == "- a list"
    assert prompt(fake("run", "--", "--help")) == "--help"


def test_text_from_a_pipe() -> None:
    assert prompt(fake("run", text=b"Once upon\n")) == "Once upon"
    assert prompt(fake("run", text=b"Once upon\r\n\r\n")) == "Once upon\r\n"
    assert prompt(fake("run", "a time", text=b"Once upon\n")) == "Once upon\na time"
    assert prompt(fake("run", "a time", "--no-stdin", text=b"Once upon\n")) == "a time"


def test_text_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbffrom a file \xc3\xa9\n")
    assert prompt(fake("run", "-f", str(file))) == "from a file é"
    assert prompt(fake("run", "-f", str(file), "argument", text=b"pipe")) == "from a file é\npipe\nargument"
    assert prompt(fake("run", "-f", "-", text=b"pipe")) == "pipe"
    assert "No such file" in one_line(fake("run", "-f", str(tmp_path / "missing")), 4)
    assert "directory" in one_line(fake("run", "-f", str(tmp_path)), 4)


def test_a_silent_pipe_does_not_hang() -> None:
    reader, writer = os.pipe()
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, FAKE, "run", "hi"], stdin=reader, env=environment({"FAKE_TEXTS": '"prompt"'}), capture_output=True, timeout=20
    )
    os.close(writer)
    os.close(reader)
    assert prompt(done) == "hi"
    assert b"--no-stdin" in done.stderr and time.monotonic() - start < 6


def test_a_slow_pipe_is_read() -> None:
    command = f"(sleep 0.5; echo slowly) | {sys.executable} {FAKE} run hi"
    done = subprocess.run(["bash", "-c", command], env=environment({"FAKE_TEXTS": '"prompt"'}), capture_output=True, timeout=20)
    assert prompt(done) == "slowly\nhi"


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"ab\xffcd", "byte 0xff at offset 2"),
        (b"\xef\xbb\xbfab\xff", "offset 5"),
        (b"ab\xe2\x82", "offset 2"),
        (b"ab\0cd", "at byte 2"),
        ("text".encode("utf-16"), "iconv -f UTF-16LE"),
        ("text in English".encode("utf-16-le"), "UTF-16"),
        (b"", "nothing came"),
    ],
)
def test_bad_input_is_refused(data: bytes, hint: str) -> None:
    assert hint in one_line(fake("run", text=data), 8)


def test_empty_standard_input_is_named_as_such() -> None:
    assert "nothing came from standard input" in one_line(fake("run", "-f", "-", text=b""), 8)


def test_endless_input_is_refused_in_bounded_memory() -> None:
    command = f"ulimit -v 1000000; yes | {sys.executable} {FAKE} run"
    done = subprocess.run(["bash", "-c", command], env=environment({}), capture_output=True, timeout=30)
    assert "more than 16 MiB" in one_line(done, 8)


def test_an_argument_that_is_no_text_is_refused() -> None:
    done = subprocess.run([sys.executable, FAKE, "run", b"\xff", "--no-stdin"], env=environment({}), capture_output=True, timeout=20)
    assert "the argument is not UTF-8: byte 0xff at offset 0" in one_line(done, 8)


# -- what comes out


def _object(done: subprocess.CompletedProcess[bytes]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json() -> None:
    found = _object(fake("run", "hi", "--json", "--seed", "7", "-n", "3", "--stop", "x", "--stop", "y", FAKE_TEXTS='["a\\u001b", "b"]'))
    assert found["schema"] == 1 and found["text"] == "a\x1bb" and found["finish"] == "eos"
    assert found["settings"]["seed"] == 7 and found["settings"]["max_tokens"] == 3 and found["settings"]["stop"] == ["x", "y"]
    assert found["tokens"][0] == {"position": 2, "id": 0, "text": "a\x1b", "bytes": "611b", "part": "answer", "logprob": None, "rank": 1}
    assert found["stats"]["peak_memory_bytes"] > 2**20


def test_json_lines() -> None:
    done = fake("run", "hi", "--jsonl", FAKE_TEXTS='["a", "b"]')
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record.get("text") for record in records] == ["a", "b", "ab"]
    assert records[-1]["type"] == "summary" and records[-1]["schema"] == 1


def test_a_new_seed_each_time() -> None:
    seeds = {_object(fake("run", "hi", "--json"))["settings"]["seed"] for _ in range(3)}
    assert len(seeds) > 1


def test_the_answer_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answer.txt"
    file.write_text("old")
    done = fake("run", "hi", "-o", str(file), "--stats")
    assert done.stdout == b"" and file.read_text() == "'hi'\n" and os.listdir(tmp_path) == ["answer.txt"]
    assert b"tokens/s" in done.stderr and b"MiB" in done.stderr
    failed = fake("run", "hi", "-o", str(file), FAKE_TEXTS='["a", "raise"]', FAKE_ERROR="ValueError()")
    assert failed.returncode == 70 and file.read_text() == "'hi'\n" and os.listdir(tmp_path) == ["answer.txt"]
    assert fake("run", "hi", "-o", "/dev/null").returncode == 0
    assert "cannot write" in one_line(fake("run", "hi", "-o", str(tmp_path / "no" / "x")), 7)


def test_streamed_or_not_is_the_same() -> None:
    texts = json.dumps(["a", " b", "\n", "c"])
    assert fake("run", "hi", FAKE_TEXTS=texts).stdout == fake("run", "hi", "--no-stream", FAKE_TEXTS=texts).stdout == b"a b\nc\n"


def test_quiet_and_system() -> None:
    assert fake("run", "hi", "-q").stderr == b""
    assert "no chat template" in one_line(fake("run", "hi", "-s", "be brief"), 2)
