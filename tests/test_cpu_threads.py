"""The compiled step and the threads that run it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from llmcli import interrupt
from llmcli.backends.cpu import objects, threads
from llmcli.backends.cpu.records import ELEMENTWISE, HEADER, ROWS_ONE, pack
from llmcli.errors import ResourceError


class Work:
    """A step whose every chunk adds 1 to a number of its own."""

    def __init__(self, operations: int, chunks: Sequence[int]) -> None:
        self.counts, self.one, self.error = np.zeros(max(chunks), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
        self.header = pack(HEADER, **{**dict.fromkeys(HEADER._fields, 0), "error": self.error.ctypes.data})
        counts, one = self.counts.ctypes.data, self.one.ctypes.data
        places = {"a": counts, "a_stride": 4, "b": one, "b_stride": 0, "out": counts, "out_stride": 4}
        self.args = pack(ELEMENTWISE, header=0, outputs=0, **places, columns=1, value=0)
        key = ("elementwise.add", ())
        rows = [[objects.load([key])[key], self.args.ctypes.data, ROWS_ONE, 1, count] for count in chunks]
        self.table = np.resize(np.array(rows, np.int64), (operations, len(rows[0])))
        self.expected = (np.arange(max(chunks))[:, None] < self.table[:, -1]).sum(1) if operations < 1000 else None


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[threads.Pool]:
    pool = threads.Pool(request.param, objects.load(threads.KERNELS))
    yield pool
    pool.close()


@pytest.mark.parametrize("pool", [1, 2, 3, 7], indirect=True)
def test_every_chunk_runs_once(pool: threads.Pool) -> None:
    work = Work(200, [1, 2, 3, 17, 0, 1, 400])
    for _ in range(20):
        work.counts[:] = 0
        assert pool.run(work.table, work.header)
        assert (work.counts == work.expected).all()


@pytest.mark.parametrize("pool", [3], indirect=True)
def test_idle_threads_use_no_cpu(pool: threads.Pool) -> None:
    work = Work(50, [9])
    for _ in range(3):
        assert pool.run(work.table, work.header)
        time.sleep(0.2)
        start = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - start < 0.02


@pytest.mark.parametrize("pool", [1, 2], indirect=True)
def test_a_long_step_stops_soon(pool: threads.Pool) -> None:
    work = Work(1_000_000, [100])
    asked = []

    def ask() -> None:
        asked.append(time.process_time())
        pool.stop()

    timer = threading.Timer(0.1, ask)
    timer.start()
    assert not pool.run(work.table, work.header)
    assert time.process_time() - asked[0] < 1
    timer.join()
    assert not pool.run(work.table[:1], work.header)
    pool.resume()
    assert pool.run(work.table[:1], work.header)


def test_threads_end_with_the_process_and_with_the_pool() -> None:
    before = threading.active_count()
    pool = threads.Pool(4, objects.load(threads.KERNELS))
    assert threading.active_count() == before + 3
    del pool
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    code = (
        "import threading\nfrom llmcli.backends.cpu import objects, threads\n"
        "pool = threads.Pool(3, objects.load(threads.KERNELS))\nprint(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_quotas_of_all_ancestors_count(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/outer/inner\n3:memory:/x\n0::/one/two\n")
    for name, text in {"one": "150000 100000", "one/two": "max 100000"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.max").write_text(text + "\n")
    old = tmp_path / "cpu,cpuacct" / "outer"
    (old / "inner").mkdir(parents=True)
    for folder, quota in ((old, "300000"), (old / "inner", "-1")):
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text("100000")
    assert threads._quotas(tmp_path / "cgroup", tmp_path) == [3.0, 1.5]
    assert threads._quotas(tmp_path / "missing", tmp_path) == []
    assert 1 <= threads.usable() <= len(threads._cpus())


def test_threads_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() - before == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ResourceError, match=r"cannot start thread 4 of 5: can't start new thread\. Use fewer threads"):
        threads.Pool(5, objects.load(threads.KERNELS))
    assert threading.active_count() == before


def test_a_signal_is_passed_on_while_code_runs_that_python_cannot_leave() -> None:
    """The step is told to stop at once (interrupt.py); Python's own handler comes when it is back."""
    order: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: order.append("python"))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with interrupt.stopping(lambda: order.append("stop")):
            timer.start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert order == ["stop", "python"]
