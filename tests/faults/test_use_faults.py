"""Cases 22, 56, 62, 63, 71, 72, 76, 79: signals at any moment, terminals that change, secrets, impossible settings, small disks."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from harness import assert_clean, attempt, ended, limited, on_tmpfs, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pulling
from fakehub import FakeHub, fakehub
from pulling import REPOSITORY, sharded
from terminal import environment
from test_commands import llm

__all__ = ["fakehub"]  # a fixture
LONG = ["run", "-m", "tiny:none", "--temp", "1", "--seed", "1", "-n", "600", "-c", "640", "Once upon a time"]


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, words: list[str], home: Path, variables: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        command = [sys.executable, "-m", "llmcli", *words]
        surroundings = environment({"LLMCLI_HOME": str(home), **variables})
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=surroundings, start_new_session=True)
        self.slave, self.shown = slave, b""

    def until(self, text: bytes, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < deadline and self.process.poll() is None:
            self.read(0.1)

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            self.shown += os.read(self.master, 65536)

    def end(self, seconds: float = 30) -> int:
        """The exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.05)
        while select.select([self.master], [], [], 0)[0]:
            self.read(0)
        assert self.process.poll() is not None, "it still runs"
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        return self.process.returncode


@contextmanager
def screen(words: list[str], home: Path, **variables: str) -> Iterator[Screen]:
    found = Screen(words, home, variables)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.wait()
        os.close(found.master)
        os.close(found.slave)


def interrupted(case: Path, times: int, twice: bool, seed: int) -> dict[int, int]:
    """SIGINT at random moments of a run, after Python has started; how often which exit code came."""
    rng, codes = random.Random(seed), dict[int, int]()
    again = cache(lambda: attempt(LONG, case / "home").code)  # nothing is written, so one re-run speaks for all
    for _ in range(times):
        before = snapshot(case)
        with screen(LONG, case / "home") as shown:
            # Python's own start, before our first line runs, ends by the signal itself.
            begun = time.monotonic()
            while not started(shown.process.pid) and time.monotonic() - begun < 10:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.5))
            shown.process.send_signal(signal.SIGINT)
            if twice:
                time.sleep(rng.uniform(0, 0.02))
                shown.process.send_signal(signal.SIGINT)
            asked = time.monotonic()
            code = shown.end()
            assert time.monotonic() - asked < 5, "on a machine that does other things too"
            # Python ends itself by SIGINT where one meets source that its library compiles (dataclasses): a shell's $? is 130 too.
            assert code in (0, 130, -signal.SIGINT), shown.shown
            proc = ended(LONG, case / "home", code, b"", shown.shown, asked, ends=[signal.SIGINT], again=again)
            assert_clean(proc, before, snapshot(case))
            codes[code] = codes.get(code, 0) + 1
    return codes


def started(process: int) -> bool:
    """Whether our own handlers stand: SIGTERM is caught."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    caught = int(text.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("twice", [False, True])
def test_interrupts_at_some_moments(case: Path, twice: bool) -> None:
    assert sum(interrupted(case, 4, twice, 11).values()) == 4


@pytest.mark.long
@pytest.mark.parametrize("twice", [False, True])
def test_interrupts_at_thirty_moments(case: Path, twice: bool) -> None:
    print(interrupted(case, 30, twice, 12))


def test_an_interrupt_while_a_long_text_is_encoded(case: Path, tmp_path: Path) -> None:
    """Case 62: the library of tokenizers alone needs half a minute for it."""
    (tmp_path / "long.txt").write_text("hello world " * 500_000)
    with screen(["tokenize", "-m", "tiny:none", "-f", str(tmp_path / "long.txt")], case / "home") as shown:
        while processor_time(shown.process.pid) < 1.5:
            assert shown.process.poll() is None
            time.sleep(0.01)
        before = snapshot(case)
        shown.process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        proc = ended(["tokenize", "-m", "tiny:none", "a"], case / "home", shown.end(), b"", shown.shown, asked)
        assert proc.code == 130
        assert_clean(proc, before, snapshot(case))
        assert time.monotonic() - asked < 5, "on a machine that does other things too"


def processor_time(process: int) -> float:
    """Seconds that it has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_terminal_that_stops_continues_and_changes(case: Path) -> None:
    """Case 63: Ctrl-Z and fg, a new size, and the end of the terminal."""
    before, since = snapshot(case), time.monotonic()
    with screen(LONG, case / "home") as shown:
        shown.until(b"Once upon a time")
        for number in range(5):
            fcntl.ioctl(shown.master, termios.TIOCSWINSZ, struct.pack("HHHH", 10 + number, 20 + number, 0, 0))
            shown.process.send_signal(signal.SIGWINCH)
            shown.process.send_signal(signal.SIGTSTP)
            time.sleep(0.05)
            shown.process.send_signal(signal.SIGCONT)
        proc = ended(LONG, case / "home", shown.end(), b"", shown.shown, since)
        assert proc.code == 0
        assert_clean(proc, before, snapshot(case))
    with screen(LONG, case / "home") as shown:
        shown.until(b"Once upon a time")
        shown.process.send_signal(signal.SIGHUP)
        assert shown.end() == -signal.SIGHUP
        proc = ended(LONG, case / "home", -signal.SIGHUP, b"", shown.shown, since, ends=[signal.SIGHUP])
        assert_clean(proc, before, snapshot(case))


@pytest.mark.parametrize(("keys", "number", "code"), [(b"\x04", 0, 0), (b"half", signal.SIGTERM, 143)])
def test_a_chat_gives_the_terminal_back(case: Path, keys: bytes, number: int, code: int) -> None:
    """Case 62, 63: it turns off what a terminal makes of keys by itself; `end` sees that all is as it was."""
    with screen(["chat", "-m", "tiny:none", "-n", "2"], case / "home") as shown:
        shown.until(b"\x1b[?2004h")
        assert termios.tcgetattr(shown.slave) != shown.before
        os.write(shown.master, keys)
        if number:
            shown.process.send_signal(number)
        assert shown.end() == code


CANARY = "zebrafinch7781"


def test_a_prompt_stays_private(case: Path, tmp_path: Path) -> None:
    """Case 71, 72: it is in no file that was written and, with -f, in no list of processes."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(f"{CANARY} once")
    command = [sys.executable, "-m", "llmcli", *LONG[:-1], "-f", str(prompt)]
    own = environment({"LLMCLI_HOME": str(case / "home"), "LLMCLI_TOKEN": "x"})
    with subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None and process.stdout.read(1)
        assert CANARY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and CANARY.encode() not in err
    before = snapshot(case)
    proc = attempt(["run", "-m", "tiny:none", "-n", "3", CANARY], case / "home")
    assert proc.code == 0 and snapshot(case) == before, "nothing at all is written"
    assert_clean(proc, before, snapshot(case))


def test_prompts_at_the_end_of_the_context(case: Path) -> None:
    """Case 76: never cut silently; counts in the message."""
    ids = json.loads(attempt(["tokenize", "-m", "tiny:none", "--json", "a b c d e f"], case / "home").out)["tokens"]
    for context, code in ((len(ids) - 1, 8), (len(ids), 0), (len(ids) + 1, 0)):
        before = snapshot(case)
        words = ["run", "-m", "tiny:none", "-c", str(context), "-n", "50", "--json", "--temp", "0", "a b c d e f"]
        proc = attempt(words, case / "home", heals=[code])
        assert proc.code == code, proc.err
        if code:
            assert f"{len(ids)}" in proc.lines[-1] and f"{context}" in proc.lines[-1]
        else:
            assert json.loads(proc.out)["finish"] == "length"
        assert_clean(proc, before, snapshot(case))


numbers = st.sampled_from(["0", "1e-9", "1e-300", "0.5", "1", "2", "100", "1e9", "-1", "nan", "inf", "1e400", "x", "", "-0.0"])
counts = st.sampled_from(["0", "1", "2", "40", "4095", "4096", "4097", "1000000", "2147483648", "-1", "1e3", "nan", ""])
FLAGS = {
    **dict.fromkeys(("--temp", "--top-p", "--min-p", "--repeat-penalty", "--presence-penalty", "--frequency-penalty"), numbers),
    **dict.fromkeys(("--top-k", "-n", "-c", "--seed", "--threads"), counts),
    "--logit-bias": st.sampled_from(["1=5", "1=-inf", "1=inf", "99999=1", "4095=-1000", "-1=1", "x=1", "1", "1=1e308"]),
    "--stop": st.sampled_from(["", "a", "\x1b", "é", "a" * 5000]),
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(FLAGS)), min_size=1, max_size=4, unique=True), st.data())
def test_extreme_settings_have_a_defined_result(original: Path, names: list[str], data: st.DataObject) -> None:
    """Case 79: an answer, a refusal of the setting (2), or of more memory or text than there is (7, 8). Never a traceback."""
    words = [word for name in names for word in (name, data.draw(FLAGS[name]))]
    done = llm(original / "home", "run", "-m", "tiny:none", *words, *([] if "-n" in names else ["-n", "3"]), "Once")
    assert done.returncode in (0, 2, 7, 8), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("llm: error: ") == (done.returncode != 0)


def test_a_small_disk_is_noticed_before_the_first_byte_of_a_weight(case: Path, fakehub: FakeHub) -> None:
    """Case 22."""
    fakehub.add(REPOSITORY, sharded(case / "source" / "big", 3, pulling.config()))
    home = case / "home"
    own = pulling.variables(fakehub, home)
    before = snapshot(case)
    proc = attempt(["pull", REPOSITORY], home, wrapper=on_tmpfs(home / "data", "4m"), variables=own)
    assert proc.code == 7 and "needs" in proc.lines[-1] and "free" in proc.lines[-1], proc.err
    assert fakehub.sent <= 1_000_000, "headers alone"
    assert_clean(proc, before, snapshot(case))


def test_little_memory_is_noticed_before_the_first_byte_of_a_weight(case: Path, fakehub: FakeHub) -> None:
    """Case 56: with headers alone it is known."""
    fakehub.add(REPOSITORY, sharded(case / "source" / "big", 3, pulling.config()))
    own = pulling.variables(fakehub, case / "home", OPENBLAS_NUM_THREADS="1")
    before = snapshot(case)
    size = 150_000_000 + 25_000_000 * (os.cpu_count() or 1)
    proc = attempt(["pull", REPOSITORY], case / "home", wrapper=limited(size), variables=own)
    assert proc.code == 7 and "not enough memory" in proc.lines[-1], proc.err
    assert fakehub.sent <= 1_000_000, "headers alone"
    assert_clean(proc, before, snapshot(case))
