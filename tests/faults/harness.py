"""The fault harness: a command runs with a fault, then the seven invariants of docs/reliability.md are checked.

    before = snapshot(folder)                                # the folder that the case may look at and change
    proc = attempt(["quantize", "tiny", "--quant", "int4"], home, wrapper=["prlimit", "--as=600000000"])
    assert_clean(proc, before, snapshot(folder))
`attempt` starts a process of its own; the plain re-run (the seventh invariant) is the same command without the fault.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from llmcli.errors import EXIT_CODES
from llmcli.weights import packed
from terminal import environment

INSTALLED = ("-c", "import sys; from llmcli.__main__ import command; sys.exit(command())")
"""What the installed `llm` does."""
SILENT = {0, 130, 141, 143}
"""Exit codes without an error line."""
OWN = ("home/data/", "home/cache/", "home/config/")
"""Where a command may write, below the folder of the case."""

Seen = dict[str, tuple[int, int, int]]
"""Path below the folder -> (mode, bytes, time of the last change in ns)."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended. code: its exit code, or minus the signal. killed: the test itself ended it by SIGKILL."""

    words: Sequence[str]
    code: int
    out: bytes
    err: bytes
    seconds: float
    limit: float
    folder: Path
    again: Callable[[], int]
    killed: bool = False
    heals: Sequence[int] = (0,)

    @property
    def lines(self) -> list[str]:
        """Lines of standard error."""
        return self.err.decode().splitlines()


def attempt(
    words: Sequence[str],
    home: Path,
    *,
    wrapper: Sequence[str] = (),
    limit: float = 120,
    variables: Mapping[str, str] = {},
    text: bytes | None = None,
    kill_after: float | None = None,
    heals: Sequence[int] = (0,),
    program: Sequence[str] = ("-m", "llmcli"),
) -> Ended:
    """`llm WORDS` in a process of its own. home: LLMCLI_HOME, which is FOLDER/home; wrapper: what starts it; limit: seconds;
    text: standard input; kill_after: seconds until SIGKILL; heals: exit codes that a plain re-run, with the same
    variables and text, may have; program: how Python is told what to run."""
    surroundings = environment({"LLMCLI_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **variables})
    command = [sys.executable, *program, *words]

    def start(wrapper: Sequence[str]) -> subprocess.Popen[bytes]:
        source = subprocess.DEVNULL if text is None else subprocess.PIPE
        pipe = subprocess.PIPE
        return subprocess.Popen([*wrapper, *command], env=surroundings, stdin=source, stdout=pipe, stderr=pipe, cwd=home.parent)

    def again() -> int:
        with start(()) as process:
            process.communicate(text, timeout=limit)
        return process.returncode

    begun = time.monotonic()
    killed = False
    with start(wrapper) as process:
        try:
            out, err = process.communicate(text, timeout=limit if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            killed = kill_after is not None
            assert killed, f"llm {' '.join(words)} still ran after {limit} s"
    seconds = time.monotonic() - begun
    return Ended(words, process.returncode, out, err, seconds, limit, home.parent, again, killed, heals)


def ended(
    words: Sequence[str],
    home: Path,
    code: int,
    out: bytes,
    err: bytes,
    since: float,
    *,
    limit: float = 120,
    ends: Sequence[int] = (),
    heals: Sequence[int] = (0,),
    again: Callable[[], int] | None = None,
) -> Ended:
    """What `attempt` returns, of a process that the test started itself. since: when (time.monotonic); ends: signals that the test
    sent and that may have ended it; again: the plain re-run, where several processes share one."""
    rerun = again or (lambda: attempt(words, home, limit=limit).code)
    return Ended(words, code, out, err, time.monotonic() - since, limit, home.parent, rerun, -code in ends, heals)


def assert_clean(proc: Ended, before: Seen, after: Seen) -> None:
    """The seven invariants."""
    lines, told = proc.lines, f"llm {' '.join(proc.words)}: code {proc.code}\n{proc.err.decode(errors='replace')}"
    assert "Traceback" not in told and "Exception ignored" not in told, f"1 (a traceback): {told}"
    if not proc.killed:
        assert proc.code >= 0 and proc.code < 128 or proc.code in EXIT_CODES, f"4 (a signal): {told}"
        assert proc.code in EXIT_CODES, f"2 (an exit code that is not documented): {told}"
        errors = [line for line in lines if line.startswith("llm: error: ")]
        assert len(errors) == (proc.code not in SILENT), f"2 (not one error line): {told}"
        assert not errors or lines[-1] == errors[0] and re.fullmatch(r"llm: error: .+[.)\"'\w/]", errors[0]), (
            f"2 (not the last line): {told}"
        )
        assert b"\x1b" not in proc.err, f"2 (escape sequences): {told!r}"
        _check_answer(proc, told)
    assert proc.seconds <= proc.limit, f"5 ({proc.seconds:.1f} s): {told}"
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    foreign = [path for path in changed if not path.startswith(OWN)]
    assert not foreign, f"6 (written elsewhere: {foreign}): {told}"
    for path in changed:
        if path in after and re.search(r"/models/[^./][^/]*\.safetensors$", path):
            with packed.open(proc.folder / path) as file:  # what has its final name is whole
                file.verify()
    code = proc.again()
    assert code in proc.heals, f"7 (a plain re-run ends with {code}): {told}"


def _check_answer(proc: Ended, told: str) -> None:
    text = proc.out.decode()
    assert not re.search(r"^llm: ", text, re.MULTILINE), f"3 (messages in the answer): {told}"
    if "--json" in proc.words and text:
        json.loads(text)
    if "--jsonl" in proc.words:
        [json.loads(line) for line in text.splitlines()]


def snapshot(folder: Path) -> Seen:
    """Every file and link below the folder."""
    found: Seen = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                seen = os.lstat(path)
            except FileNotFoundError:  # another process is at work there
                continue
            found[os.path.relpath(path, folder)] = (seen.st_mode, seen.st_size, seen.st_mtime_ns)
    return found


# Programs that only these tests need


@cache
def _works(program: str) -> str:
    """Why the program cannot be used here; '' if it can."""
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if program == "strace" and subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode:
        return "no process may be traced here"
    return ""


def needs(program: str) -> str:
    """The program's name; skips, counted, where it cannot be used."""
    if why := _works(program):
        pytest.skip(why)
    return program


def injecting(call: str, what: str, nth: int, log: Path) -> list[str]:
    """A wrapper that spoils the nth call of a kind, counted in each thread. what: 'signal=KILL' or 'error=ENOSPC'."""
    return [needs("strace"), "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={nth}", "-o", str(log)]


def injected(log: Path) -> bool:
    """Whether the fault took place."""
    text = log.read_text(errors="replace")
    return "INJECTED" in text or "killed by SIGKILL" in text


def unprivileged() -> list[str]:
    """A wrapper that takes away the right of root to write everywhere."""
    return [needs("setpriv"), "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []


def on_tmpfs(folder: Path, size: str) -> list[str]:
    """A wrapper for a process that sees a disk of this size ('4k', '20m') at the folder; nobody else sees it."""
    inside = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
    wrapper = [needs("unshare"), "-m"] if os.geteuid() == 0 else [needs("unshare"), "-rm"]
    if subprocess.run([*wrapper, "sh", "-c", inside, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    return [*wrapper, "sh", "-c", inside, "sh"]


def limited(address_space: int) -> list[str]:
    """A wrapper that gives a process this many bytes of address space."""
    return [needs("prlimit"), f"--as={address_space}"]
