"""A packed file appears whole or not at all: failing system calls, kills, interrupts, other writers, full disks."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from llmcli.errors import DiskError, InUse, NumericalError
from llmcli.weights import atomic, packed
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File
from small_model import ARRAYS, checkpoint, load, path, write

__all__ = ["checkpoint", "path"]  # fixtures


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "open"])
def test_whatever_system_call_fails_the_file_is_whole(
    path: Path, checkpoint: Checkpoint, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = path.read_bytes(), getattr(os, call)
    write(path, checkpoint, "int8")
    after = path.read_bytes()
    for fail_at in itertools.count():
        path.write_bytes(before)
        calls = itertools.count()

        def failing(*arguments: Any, calls: Iterator[int] = calls, fail_at: int = fail_at, **named: Any) -> Any:
            if next(calls) == fail_at:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                write(path, checkpoint, "int8")
            except DiskError as error:
                assert error.code == 7 and os.strerror(number) in str(error)
        assert leftovers(path.parent) == []
        tried = next(calls) > fail_at
        # After the rename only the folder's own fsync is left: the new file is there then, and complete.
        assert path.read_bytes() == before or path.read_bytes() == after and (call in ("fsync", "open") or not tried)
        if not tried:
            assert path.read_bytes() == after and fail_at > 0
            break


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import small_model
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File
calls = 0
def progress(done, total):
    global calls
    calls += 1
    if calls == {calls}:
        {action}
with File(Path({source!r})) as file:
    small_model.write(Path({target!r}), Checkpoint([file]), "int8", progress=progress)
"""


def writing(checkpoint: Checkpoint, target: Path, calls: int, action: str) -> subprocess.Popen[bytes]:
    source = str(next(iter(checkpoint._files)).path)
    code = KILLED.format(tests=str(Path(__file__).parent), source=source, target=str(target), calls=calls, action=action)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(path: Path, checkpoint: Checkpoint) -> None:
    before = path.read_bytes()
    for calls in (1, 4):
        with writing(checkpoint, path, calls, "os.kill(os.getpid(), signal.SIGKILL)") as process:
            assert process.wait(60) == -signal.SIGKILL
        assert path.read_bytes() == before
        assert [name.endswith((".part", ".lock")) for name in leftovers(path.parent)] == [True, True]
        write(path, checkpoint)
        assert leftovers(path.parent) == []


def test_an_interrupted_writer_removes_its_temporary_file(path: Path, checkpoint: Checkpoint) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(path, checkpoint, progress=interrupt)
    assert path.read_bytes() == before and leftovers(path.parent) == []


def test_a_second_writer_waits_for_the_first(path: Path, checkpoint: Checkpoint) -> None:
    action = "print('in', flush=True); import time; time.sleep(0.7)"
    with writing(checkpoint, path, 3, action) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        waited: list[int] = []
        start = time.perf_counter()
        write(path, checkpoint, waiting=waited.append)
        assert waited == [process.pid] and time.perf_counter() - start > 0.3
        assert process.wait(60) == 0
    with packed.open(path) as model:
        assert model.quantization == "int4"
    assert leftovers(path.parent) == []


def test_temporary_files_of_living_writers_stay(path: Path, checkpoint: Checkpoint) -> None:
    other = path.parent / "other-int8.safetensors"
    with writing(checkpoint, other, 3, "print('in', flush=True); import time; time.sleep(0.7)") as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        write(path, checkpoint)
        assert process.wait(60) == 0
    assert leftovers(path.parent) == []
    load(other)


def test_without_locks_the_file_is_whole_too(path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(atomic.fcntl, "flock", unsupported)
    write(path, checkpoint, "int8")
    load(path)


def test_nobody_waits_for_a_dead_process_with_our_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, one process after the other may have it."""
    monkeypatch.setattr(atomic.fcntl, "flock", lambda descriptor, how: None)
    (tmp_path / f".model.7-{os.getpid()}.held").touch()
    lock = tmp_path / ".model.lock"
    with atomic.turn(lock, None, timeout=1.0):
        assert atomic.busy(lock)
        with pytest.raises(InUse, match=f"process {os.getpid()} is still at work"), atomic.turn(lock, None, timeout=0.1):
            pass
        assert lock.exists(), "it is the holder's"
    assert leftovers(tmp_path) == [] and not atomic.busy(lock)


def test_who_gets_a_number_meanwhile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that is under way when it happens may have neither of the two files."""
    monkeypatch.setattr(atomic.fcntl, "flock", lambda descriptor, how: None)
    (tmp_path / f".model.1-{os.getppid()}.held").touch()
    listings = itertools.count()
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: [] if next(listings) % 2 == 0 else real(folder))
    with pytest.raises(InUse, match=f"process {os.getppid()} is still at work"), atomic.turn(tmp_path / ".model.lock", None, timeout=0.1):
        pass


def test_bytes_are_on_the_disk_before_the_name_is_there(path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pwrite", "fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: calls.append(name) or real(*arguments))
    write(path, checkpoint)
    assert calls[-3:] == ["fsync", "rename", "fsync"] and set(calls[:-3]) == {"pwrite"}


def test_a_full_disk_is_noticed_before_writing(path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    with pytest.raises(DiskError, match="it needs .* MiB and the disk has 0.0 MiB free"):
        write(path, checkpoint)
    assert leftovers(path.parent) == []


def test_bad_weights_leave_nothing_behind(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "down": ARRAYS["down"].copy()}
    arrays["down"][3, 5] = np.nan
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    with File(tmp_path / "model.safetensors") as file:
        with pytest.raises(NumericalError, match=r'"down".*nan at \[3, 5\]'):
            write(tmp_path / "out" / "m.safetensors", Checkpoint([file]))
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_ends_with_everything(tmp_path: Path, checkpoint: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path / "m.safetensors", checkpoint, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]


def test_an_open_model_survives_its_removal(path: Path) -> None:
    with packed.open(path) as model:
        path.unlink()
        assert model.load()


def test_a_lock_that_is_a_link_is_not_followed(path: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What it leads to would be emptied."""
    precious = tmp_path / "precious"
    precious.write_text("x")
    path.with_name(f".{path.name}.lock").symlink_to(precious)
    before = path.read_bytes()
    with pytest.raises(DiskError, match="symbolic links"):
        write(path, checkpoint, "int8")
    assert precious.read_text() == "x" and path.read_bytes() == before
