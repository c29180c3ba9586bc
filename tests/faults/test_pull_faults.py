"""Group B as whole commands, with the seven invariants: what is wrong with a hub or on the way, and the plain re-run that puts it right."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import assert_clean, attempt, ended, injected, injecting, snapshot
from made import hidden, models

import pulling
from fakehub import FakeHub, Fault, fakehub
from pulling import REPOSITORY, sharded
from random_model import write_folder

__all__ = ["fakehub"]  # a fixture
EVIL = "../../../evil.safetensors"
FAULTS: dict[str, tuple[Fault, int, str]] = {
    "a corrupt body": (Fault("corrupt"), 6, "SHA-256"),
    "a hostile commit": (Fault("commit"), 6, "not to be trusted"),
    "a hostile ETag": (Fault("etag", headers={"etag": "../../../evil"}), 6, "not to be trusted"),
    "a hostile name": (Fault("name", headers={"name": EVIL}), 6, "not to be trusted"),
    "another commit": (Fault("moving"), 6, "not to be trusted"),
    "a redirect to plain http": (Fault("location", headers={"to": "http://example.com"}), 5, "not https"),
    "no such file": (
        Fault("status", code=404, where="resolve", headers={"X-Error-Code": "EntryNotFound"}),
        4,
        "does not have all its files",
    ),
    "an error that is no pause": (Fault("status", code=418), 5, "418"),
    "too long a pause": (Fault("status", code=429, headers={"Retry-After": "7200"}), 5, "try again in 7,200 seconds"),
    "a cut": (Fault("truncate", amount=40_000), 5, "the connection was cut"),
}


SOME = ("a corrupt body", "a hostile name", "a redirect to plain http", "no such file", "too long a pause")


@pytest.mark.parametrize("name", [name if name in SOME else pytest.param(name, marks=pytest.mark.long) for name in FAULTS])
def test_a_fault_and_a_plain_run_after_it(case: Path, fakehub: FakeHub, name: str) -> None:
    fault, code, says = FAULTS[name]
    fakehub.add(REPOSITORY, sharded(case / "source" / "pulled", 2))
    own = pulling.variables(fakehub, case / "home", HF_HUB_DOWNLOAD_TIMEOUT="0.3")
    fakehub.fault = fault
    before, since = snapshot(case), time.monotonic()
    proc = attempt(["pull", REPOSITORY], case / "home", variables=own)
    assert proc.code == code and says in proc.lines[-1], proc.err
    assert not list(case.rglob("*evil*")) and not list(models(case).glob("org--*"))
    after = snapshot(case)
    fakehub.fault = Fault("none")
    again = attempt(["pull", REPOSITORY], case / "home", variables=own)
    assert again.code == 0 and hidden(case) == [], again.err
    proc = ended(["pull", REPOSITORY], case / "home", proc.code, proc.out, proc.err, since, again=lambda: again.code)
    assert_clean(proc, before, after)
    assert_clean(again, after, snapshot(case))


def spoiled(case: Path, fakehub: FakeHub, call: str, what: str, numbers: list[int]) -> int:
    """Spoils the n-th call of a kind of `llm pull`; how many there were. Each time a plain re-run ends with the whole model."""
    own, count = pulling.variables(fakehub, case / "home"), 0
    words = ["pull", REPOSITORY]
    for nth in numbers:
        log = case / "home" / "data" / "strace.log"
        before = snapshot(case)
        proc = attempt(words, case / "home", wrapper=injecting(call, what, nth, log), variables=own)
        model = models(case) / "org--model-int8.safetensors"
        if not injected(log):
            assert proc.code == 0, proc.err
            model.unlink()
            break
        count += 1
        if "KILL" in what:
            proc = ended(words, case / "home", proc.code, proc.out, proc.err, time.monotonic(), ends=[9], again=proc.again)
        else:
            assert proc.code == 7 and "No space left on device" in proc.lines[-1], (call, nth, proc.err)
        lock = [f".{model.name}.lock"] if "KILL" in what and model.is_file() else []  # behind the rename nothing is left to do
        assert_clean(proc, before, snapshot(case))
        assert model.is_file() and hidden(case) in ([], lock) and not list((case / "home" / "cache").rglob("*.part"))
        model.unlink()
    return count


WRITES = ("pwrite64", "fsync", "?rename,?renameat,?renameat2")


@pytest.mark.parametrize("what", ["error=ENOSPC", "signal=KILL"])
def test_a_system_call_of_a_download_that_fails(case: Path, fakehub: FakeHub, what: str) -> None:
    """Cases 19 and 22."""
    fakehub.add(REPOSITORY, sharded(case / "source" / "pulled", 2))
    assert sum(spoiled(case, fakehub, call, what, [2] if call == "fsync" else [5]) for call in WRITES) == len(WRITES)


@pytest.mark.long
@pytest.mark.parametrize("what", ["error=ENOSPC", "signal=KILL"])
def test_every_system_call_of_a_download(case: Path, fakehub: FakeHub, what: str) -> None:
    fakehub.add(REPOSITORY, sharded(case / "source" / "pulled", 2))
    print(f"{what}: {sum(spoiled(case, fakehub, call, what, list(range(1, 1000))) for call in WRITES)} system calls")


def test_a_gated_repository_and_what_is_not_there(case: Path, fakehub: FakeHub) -> None:
    """Case 28: codes and next steps, as commands."""
    fakehub.add("org/gated", write_folder(case / "source" / "pulled"), gated=True)
    own = pulling.variables(fakehub, case / "home")
    for name, says in (("org/gated", "set HF_TOKEN"), ("org/nothing", "no repository"), ("tinyy", "no alias")):
        before = snapshot(case)
        proc = attempt(["pull", name], case / "home", variables=own, heals=[4])
        assert proc.code == 4 and says in proc.lines[-1], proc.err
        assert_clean(proc, before, snapshot(case))


def test_the_token_is_in_no_list_of_processes(case: Path, fakehub: FakeHub) -> None:
    """Case 29: others see a process's words, and its name."""
    fakehub.add(REPOSITORY, write_folder(case / "source" / "pulled"), gated=True)
    fakehub.fault = Fault("slow", amount=400_000)
    own = pulling.variables(fakehub, case / "home", HF_TOKEN="hf_right")
    command = [sys.executable, "-m", "llmcli", "pull", REPOSITORY]
    with subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, cwd=case) as process:
        while not fakehub.sent and process.poll() is None:
            time.sleep(0.01)
        for name in ("cmdline", "comm"):
            assert b"hf_right" not in Path(f"/proc/{process.pid}/{name}").read_bytes()
        fakehub.fault = Fault("none")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"hf_right" not in err
    for parent, _, names in os.walk(case / "home"):
        for name in names:
            assert b"hf_right" not in (Path(parent) / name).read_bytes()
