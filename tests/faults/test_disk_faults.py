"""Cases 22, 34 to 38: a kill, a full disk and a failing disk at each system call of what writes models."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from harness import assert_clean, attempt, ended, injected, injecting, needs, on_tmpfs, snapshot
from made import hidden, models

from llmcli.weights import packed
from terminal import environment

RENAME = "?rename,?renameat,?renameat2"
"""Whichever of them this processor has."""
WRITES = ("pwrite64", "fsync", RENAME)
COMMANDS = {"import": ["import", "source/tiny", "--quant", "int8"], "quantize": ["quantize", "tiny:none", "--quant", "int8"]}
HEALS = {"import": [0], "quantize": [0, 2]}
"""How a plain re-run may end: `llm quantize` refuses (2) to make what is here already, which is whole then."""


def points(call: str, most: int | None) -> list[int]:
    """Which of the calls of a kind are spoiled: all up to the first that does not exist, or some."""
    return list(range(1, 1000)) if most is None else [7, 2, 19][:most] if call == "pwrite64" else [1, 2]


def sweep(case: Path, command: str, what: str, most: int | None) -> int:
    """Spoils one system call after the other; how many were."""
    old = models(case) / "tiny-int8.safetensors"
    count = 0
    for call in WRITES:
        for nth in points(call, most):
            log = case / "home" / "data" / "strace.log"
            before = snapshot(case)
            spoiled = injecting(call, what, nth, log)
            proc = attempt(COMMANDS[command], case / "home", wrapper=spoiled, heals=HEALS[command])
            if not injected(log):
                assert proc.code == 0 and nth > 1, proc.err
                old.unlink()
                break
            count += 1
            if "KILL" in what:
                proc = replace(proc, killed=True)
            else:
                # The folder's own fsync comes when the new name is there already.
                assert proc.code == 7 and not hidden(case), (proc.code, proc.err, hidden(case))
            assert_clean(proc, before, snapshot(case))
            assert hidden(case) in ([], [f".{old.name}.lock"] if command == "quantize" else []), "the re-run cleans up"
            with packed.open(old) as file:
                file.verify()
            old.unlink()
    return count


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_a_system_call(case: Path, command: str) -> None:
    assert sweep(case, command, "signal=KILL", 1) >= 4


@pytest.mark.parametrize(("command", "error"), [("import", "ENOSPC"), ("quantize", "EDQUOT")])
def test_an_error_at_a_system_call(case: Path, command: str, error: str) -> None:
    assert sweep(case, command, f"error={error}", 1) >= 4


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["signal=KILL", "error=ENOSPC", "error=EIO", "error=EDQUOT"])
def test_every_system_call(case: Path, command: str, what: str) -> None:
    print(f"{command}, {what}: {sweep(case, command, what, None)} system calls")


def test_bytes_name_folder_in_this_order(case: Path, tmp_path: Path) -> None:
    """A power cut: the bytes are on the disk before the name is there, and the name before the command ends."""
    log = tmp_path / "log"
    wrapper = [needs("strace"), "-f", "-qq", "-y", "-e", f"trace=pwrite64,fsync,{RENAME}", "-o", str(log)]
    assert attempt(COMMANDS["import"], case / "home", wrapper=wrapper).code == 0
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
    kinds = [re.sub("^rename.*", "rename", line.partition("(")[0]) for line in calls]
    assert kinds[-3:] == ["fsync", "rename", "fsync"] and set(kinds[:-3]) == {"pwrite64"}
    assert ".part>" in calls[-3] and calls[-1].endswith(f"{models(case)}>) = 0")


def test_a_small_disk_is_noticed_before_anything_is_written(case: Path) -> None:
    wrapper = on_tmpfs(models(case), "300k")
    before = snapshot(case)
    proc = attempt(COMMANDS["import"], case / "home", wrapper=wrapper)
    assert proc.code == 7 and "the disk has" in proc.lines[-1] and "needs" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))


def test_too_large_a_file_is_an_error_of_the_disk(case: Path) -> None:
    before = snapshot(case)
    proc = attempt(COMMANDS["import"], case / "home", wrapper=[needs("prlimit"), "--fsize=200000"])
    assert proc.code == 7 and "File too large" in proc.lines[-1] and not hidden(case)
    assert_clean(proc, before, snapshot(case))


def kill_at_random(case: Path, kills: int, seed: int) -> int:
    """Kills `llm quantize` at that many random points; the re-run must make the same bytes each time. How many runs it took."""
    path = models(case) / "tiny-int8.safetensors"
    first = attempt(COMMANDS["quantize"], case / "home")
    usual, right = first.seconds, digest(path)
    rng, met = random.Random(seed), 0
    for number in itertools.count():
        if met == kills:
            return number
        path.unlink()
        before = snapshot(case)
        proc = attempt(COMMANDS["quantize"], case / "home", kill_after=rng.uniform(0.3, 1.05) * usual, heals=HEALS["quantize"])
        met += proc.killed
        usual = usual if proc.killed else min(usual, proc.seconds)
        assert_clean(proc, before, snapshot(case))
        assert digest(path) == right and set(hidden(case)) <= {f".{path.name}.lock"}
    raise AssertionError


def digest(path: Path) -> str:
    """Of the weights: the header has the time of making."""
    with packed.open(path) as file:
        file.verify()
        return hashlib.sha256(repr(sorted((name, entry.sha256) for name, entry in file.entries.items())).encode()).hexdigest()


def test_killed_quantizing_is_done_again(case: Path) -> None:
    assert kill_at_random(case, 4, 1) >= 4


@pytest.mark.long
def test_sixty_killed_quantizings(case: Path) -> None:
    print(f"60 kills in {kill_at_random(case, 60, 2)} runs")


def race(case: Path, rounds: int, kill: bool) -> None:
    """Four processes make the same model at once; with `kill`, one of them is killed. The others end well, with one result."""
    path = models(case) / "tiny-int8.safetensors"
    rng = random.Random(5)
    right = None
    surroundings = environment({"LLMCLI_HOME": str(case / "home"), "PYTHONPATH": os.pathsep.join(sys.path)})
    for number in range(rounds):
        path.unlink(missing_ok=True)
        before, since = snapshot(case), time.monotonic()
        made = "import" if number % 2 else "quantize"
        again = cache(lambda words=COMMANDS[made]: attempt(words, case / "home").code)
        command = [sys.executable, "-m", "llmcli", *COMMANDS[made]]
        processes = [
            subprocess.Popen(command, env=surroundings, cwd=case, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        victim = processes.pop(rng.randrange(4)) if kill else None
        if victim is not None:
            time.sleep(rng.uniform(0.2, 1.5))
            victim.kill()
            victim.communicate()
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode in HEALS[made], err.decode()
            assert process.returncode == 0 or b"is here already" in err
            proc = ended(COMMANDS[made], case / "home", process.returncode, out, err, since, heals=HEALS[made], again=again)
            assert_clean(proc, before, snapshot(case))
        # What the killed one was writing, if it came last, goes with the next writer.
        assert [name for name in hidden(case) if victim is None or f".{victim.pid}-" not in name] == []
        if right is None:
            right = digest(path)
        assert digest(path) == right


def test_four_processes_make_one_model(case: Path) -> None:
    race(case, 2, kill=False)
    race(case, 2, kill=True)


@pytest.mark.long
def test_fifty_races_of_four_processes(case: Path) -> None:
    race(case, 25, kill=False)
    race(case, 25, kill=True)


def test_threads_do_not_change_a_byte(case: Path) -> None:
    """Case 38: two runs, on one CPU and on all."""
    seen = []
    for wrapper in ([], [needs("taskset"), "-c", str(min(os.sched_getaffinity(0)))]):
        proc = attempt(COMMANDS["import"], case / "home", wrapper=wrapper)
        assert proc.code == 0, proc.err
        seen.append(digest(models(case) / "tiny-int8.safetensors"))
    assert seen[0] == seen[1]
