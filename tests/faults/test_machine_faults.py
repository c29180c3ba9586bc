"""Cases 43 to 51, 55 to 59: damaged kernels, no place for them, few CPUs, little memory."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cgroups import cgroup
from harness import INSTALLED, assert_clean, attempt, injecting, limited, needs, on_tmpfs, snapshot, unprivileged

import llmcli
from llmcli.backends.cpu import objects
from terminal import environment
from test_cpu_objects import SCRIPT, SMALL, start_loading

RUN = ["run", "-m", "tiny:none", "--temp", "0", "-n", "20", "Once upon a time"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the objects of SMALL."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    start_loading(folder, *(name for name, _ in SMALL)).communicate(timeout=100)
    return folder


@pytest.fixture
def kernels(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which this process uses."""
    shutil.copytree(kept, tmp_path / "kernels")
    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path / "kernels"))
    return tmp_path / "kernels" / objects.maker()


def test_three_hundred_flipped_bits_in_kernels(kernels: Path) -> None:
    """Case 43: each is found before the object is linked; the file goes, so that the kernel is compiled again."""
    rng, caught = random.Random(43), 0
    contents = {key: next(kernels.glob(f"{key[0]}-*.o")).read_bytes() for key in SMALL}
    for number in range(300):
        key = SMALL[number % len(SMALL)]
        path = next(iter(kernels.glob(f"{key[0]}-*.o")), None) or kernels / objects._path(kernels, key).name
        changed = bytearray(contents[key])
        changed[rng.randrange(64 if number % 3 == 0 else len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        said: list[str] = []
        assert objects._kept(kernels, [key], said.append) == {}
        assert len(said) == 1 and "is damaged; compiling it again" in said[0] and not path.exists()
        path.write_bytes(contents[key])
        caught += 1
    assert caught == 300
    assert objects._kept(kernels, SMALL, pytest.fail).keys() == set(SMALL)


def test_a_run_mends_damaged_kernels(case: Path) -> None:
    kernels = case / "home" / "cache" / "kernels"
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)
    variables = {"LLMCLI_KERNELS": str(kernels)}
    right = attempt(RUN, case / "home", variables=variables)
    assert right.code == 0, right.err
    (used,) = (kernels / objects.maker()).glob("select.rows-*.o")
    for damage in (b"", used.read_bytes()[:100], used.read_bytes()[:-1] + b"\x55", b"\x80\x04canary"):
        used.write_bytes(damage)
        before = snapshot(case)
        proc = attempt(RUN, case / "home", variables=variables)
        assert (proc.code, proc.out) == (0, right.out) and proc.err.count(b"is damaged; compiling it again") == 1
        assert_clean(proc, before, snapshot(case))


def loaded(wrapper: list[str], folder: Path, **variables: str) -> list[str]:
    """What a process prints that loads two kernels from the folder; the last line says how many it compiled."""
    own = environment({"LLMCLI_KERNELS": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), **variables})
    command = [*wrapper, sys.executable, "-c", SCRIPT, "select.rows", "position.add"]
    done = subprocess.run(command, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_place_for_kernels(tmp_path: Path) -> None:
    """Case 44: a folder that cannot be written, a disk of 4 KB, no HOME: one warning each, and the kernel works."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    *warnings, last = loaded(unprivileged(), closed / "kernels")
    assert len(warnings) == 1 and "no folder for compiled kernels" in warnings[0] and last == "compiled 2 numba False"
    assert not any(closed.iterdir())
    small = tmp_path / "small"
    small.mkdir(mode=0o700)
    *warnings, last = loaded(on_tmpfs(small, "4k"), small / "kernels")
    assert len(warnings) == 1 and "compiled" in warnings[0] and last == "compiled 2 numba False"
    assert not any(small.iterdir())


def test_a_home_that_is_not_known(case: Path, tmp_path: Path) -> None:
    """Case 44: without HOME, and with a cache of kernels that is there but read-only."""
    wrapper = ["env", "-u", "HOME", "-u", "XDG_DATA_HOME", "-u", "XDG_CACHE_HOME"]
    before = snapshot(case)
    proc = attempt(RUN, case / "home", wrapper=wrapper)
    assert proc.code == 0 and proc.err == b""
    assert_clean(proc, before, snapshot(case))
    kernels = tmp_path / "kernels"
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)
    for folder in (kernels, kernels / objects.maker()):
        folder.chmod(0o555)
    proc = attempt(RUN, case / "home", wrapper=unprivileged(), variables={"LLMCLI_KERNELS": str(kernels)})
    assert proc.code == 0 and proc.err == b""
    for folder in (kernels, kernels / objects.maker()):
        folder.chmod(0o755)


def cold(tmp_path: Path, rounds: int) -> None:
    """Eight processes compile into one empty folder at once."""
    names = [name for name, _ in SMALL[:2]]
    for number in range(rounds):
        folder = tmp_path / f"kernels-{number}"
        processes = [start_loading(folder, *names) for _ in range(8)]
        outputs = [process.communicate(timeout=300)[0].split() for process in processes]
        assert sorted(outputs) == [["compiled", "0", "numba", "False"]] * 7 + [["compiled", "2", "numba", "False"]]
        assert [process.returncode for process in processes] == [0] * 8


@pytest.mark.long
def test_eight_cold_starts_twenty_times(tmp_path: Path) -> None:
    cold(tmp_path, 20)


def test_nothing_forks_once_threads_run() -> None:
    """Case 48: other processes are started anew; nothing of ours forks."""
    for path in Path(llmcli.__file__).parent.rglob("*.py"):
        assert not re.search(r"os\.fork\b|\bmultiprocessing\b|ProcessPool|preexec_fn|forkpty", path.read_text("utf-8")), path


THREADS = "from llmcli.backends.cpu import threads; print(threads.usable())"


def test_threads_are_the_cpus_we_may_use(case: Path) -> None:
    """Case 49: the CPUs we are tied to; not what variables of other libraries say."""
    one = [needs("taskset"), "-c", str(min(os.sched_getaffinity(0)))]
    wild = {"NUMBA_NUM_THREADS": "99", "OMP_NUM_THREADS": "0", "NUMBA_THREADING_LAYER": "workqueue", "OPENBLAS_NUM_THREADS": "-1"}

    def usable(wrapper: list[str], variables: dict[str, str]) -> int:
        command = [*wrapper, sys.executable, "-c", THREADS]
        return int(subprocess.run(command, env=environment(variables), capture_output=True, timeout=60, check=True).stdout)

    assert usable(one, {}) == usable(one, wild) == 1
    assert usable([], wild) == usable([], {}) <= len(os.sched_getaffinity(0))
    right = attempt(RUN, case / "home")
    for wrapper, variables in ((one, {}), ([], wild), (one, wild)):
        before = snapshot(case)
        proc = attempt(RUN, case / "home", wrapper=wrapper, variables=variables)
        assert (proc.code, proc.out) == (0, right.out), proc.err
        assert_clean(proc, before, snapshot(case))


@pytest.mark.long
@pytest.mark.parametrize("cpu", ["generic", "nehalem", "haswell"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_the_same_text_on_older_cpus(case: Path, cpu: str, quant: str) -> None:
    """Case 50."""
    if os.uname().machine != "x86_64":
        pytest.skip("these CPUs are x86")
    assert attempt(["quantize", "tiny:none", "--quant", quant], case / "home").code == 0
    words = [*RUN[:1], "-m", f"tiny:{quant}", *RUN[3:]]
    right = attempt(words, case / "home", limit=300)
    older = attempt(words, case / "home", limit=300, variables={"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""})
    assert older.code == right.code == 0, older.err
    assert older.out == right.out


SPEED = """
import sys, time
import numpy as np
from llmcli import engine
from llmcli.backends.backend import Batch
with engine.opened("tiny:none", context=600, threads=int(sys.argv[1])) as model:
    best = 1e9
    sequence = model.cache.sequence()
    ids = np.arange(1, 33, dtype=np.int32)
    for _ in range(int(sys.argv[2])):
        begun = time.perf_counter()
        for _ in range(int(sys.argv[3])):
            model.run(Batch.of(sequence, ids))
            sequence.truncate(0)
        best = min(best, time.perf_counter() - begun)
    print(model._runner.threads, best)
"""


def quota_speed(case: Path, cpus: float, wanted: int, rounds: int, steps: int = 16) -> float:
    """Seconds of some steps under a quota, with 0: our own choice of threads, or so many; the machine does other things too."""
    with cgroup(cpus=cpus) as group:
        command = [*group, sys.executable, "-c", SPEED, str(wanted), str(rounds), str(steps)]
        own = environment({"LLMCLI_HOME": str(case / "home"), "PYTHONPATH": os.pathsep.join(sys.path)})
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=True)
    threads, best = done.stdout.split()
    assert wanted or int(threads) == min(max(1, math.ceil(cpus)), len(os.sched_getaffinity(0)))
    return float(best)


def test_a_quota_decides_threads(case: Path) -> None:
    """Case 49."""
    before = snapshot(case)
    right = attempt(RUN, case / "home")
    for cpus in (0.5, 1.5):
        quota_speed(case, cpus, 0, 1)
        with cgroup(cpus=cpus) as group:
            proc = attempt(RUN, case / "home", wrapper=group)
        assert (proc.code, proc.out) == (0, right.out)
        assert_clean(proc, before, snapshot(case))


@pytest.mark.long
@pytest.mark.parametrize("cpus", [0.5, 1.5])
def test_a_quota_is_used_as_well_as_by_any_number_of_threads(case: Path, cpus: float) -> None:
    """Case 49: our own choice is at most 15% slower than the best fixed number, measured in turns."""
    best: dict[int, float] = {}
    for _ in range(5):
        for threads in range(min(3, len(os.sched_getaffinity(0)) + 1)):
            best[threads] = min(best.get(threads, 1e9), quota_speed(case, cpus, threads, 4, 256))  # several periods of the quota
    print(f"{cpus} CPUs: " + ", ".join(f"{threads or 'our own number of'} threads {1e3 * x:.1f} ms" for threads, x in best.items()))
    assert best[0] <= 1.15 * min(best.values())


def test_no_gpu_is_touched(case: Path, tmp_path: Path) -> None:
    """Case 55."""
    log = tmp_path / "log"
    assert attempt(RUN, case / "home", wrapper=[needs("strace"), "-f", "-qq", "-e", "trace=openat,open", "-o", str(log)]).code == 0
    text = log.read_text(errors="replace")
    assert "tiny-none.safetensors" in text
    assert not re.search(r"libcuda|/dev/nvidia|libnvidia|numba/(core|cuda)|/proc/driver/nvidia", text)


# Memory


ONE = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's library takes 40 MB of address space for each CPU, or ends the process: with one thread, all machines are alike."""


def memory_sweep(case: Path, sizes: list[int]) -> list[int]:
    """Runs with so many MB of address space; their exit codes."""
    codes = []
    for size in sizes:
        before = snapshot(case)
        proc = attempt(RUN, case / "home", wrapper=limited(size * 1_000_000), variables=ONE)
        assert proc.code in (0, 7), proc.err
        assert_clean(proc, before, snapshot(case))
        codes.append(proc.code)
    return codes


def steps(first: int, last: int) -> list[int]:
    """Sizes that grow by 5%."""
    found = [first]
    while found[-1] < last:
        found.append(found[-1] * 105 // 100)
    return found


def least() -> int:
    """MB of address space in which Python and its libraries start."""
    return 140 + 26 * (os.cpu_count() or 1)


def test_some_sizes_of_memory(case: Path) -> None:
    """Case 58."""
    codes = memory_sweep(case, steps(least(), 4 * least())[::6])
    assert codes == sorted(codes, reverse=True) and codes[-1] == 0


@pytest.mark.long
def test_all_sizes_of_memory(case: Path) -> None:
    codes = memory_sweep(case, steps(least(), 4 * least()))
    assert codes == sorted(codes, reverse=True)
    print(f"{len(codes)} sizes of address space, {codes.count(7)} refused")


@pytest.mark.long
def test_memory_fails_at_some_call(case: Path, tmp_path: Path) -> None:
    """Case 58: the n-th mmap finds no memory. Before Python itself has started its loader says so, with a code of its own."""
    log, codes = tmp_path / "log", dict[int, int]()
    count = 0
    for nth in range(60, 300, 4):
        failing = injecting("mmap", "error=ENOMEM", nth, log)
        proc = attempt(RUN, case / "home", wrapper=failing, variables=ONE, program=INSTALLED)
        assert proc.code in (0, 7, 70), (nth, proc.code, proc.err)
        # Python's hashlib itself logs a traceback when one of its libraries cannot be loaded.
        assert b"Traceback" not in proc.err or b"code for hash" in proc.err, (nth, proc.err)
        codes[proc.code] = codes.get(proc.code, 0) + 1
        count += "INJECTED" in log.read_text(errors="replace")
    print(f"{count} failed calls: {codes}")


def test_what_does_not_fit_is_refused_with_numbers(case: Path) -> None:
    """Case 56: at half and at nine tenths of what a context needs, before the weights are read."""
    words = ["-m", "tiny:none", "--kv", "f32"]
    needed = json.loads(attempt(["show", "tiny:none", "--json"], case / "home").out)["memory_bytes"]
    assert needed > 0
    base = least() * 1_000_000
    for share in (0.0, 0.3):
        before = snapshot(case)
        proc = attempt(["run", *words, "-n", "1", "a"], case / "home", wrapper=limited(int(base + share * needed)), variables=ONE)
        assert proc.code == 7 and "not enough memory" in proc.lines[-1]
        assert re.search(r"it needs \d+ MiB and \d+ MiB are available|does not fit", proc.lines[-1]) and "smaller" in proc.lines[-1]
        assert_clean(proc, before, snapshot(case))


def test_a_control_group_with_little_memory(case: Path) -> None:
    """Case 56: from too little for anything to enough: a refusal that names what fits, and what it names does run. Never the end by
    the system, which a killed process would tell."""
    seen = set()
    for megabytes in range(28, 56, 4):
        with cgroup(memory=megabytes * 1_000_000) as group:
            before = snapshot(case)
            proc = attempt(RUN, case / "home", wrapper=group)
            assert proc.code in (0, 7), proc.err
            assert_clean(proc, before, snapshot(case))
            named = re.search(r"Try (.*), which fits(?: \((llm .*) makes it\))?", proc.lines[-1]) if proc.code else None
            seen.add(named is not None if proc.code else "ran")
            if named is None:
                continue
            if named[2]:
                assert attempt(named[2].split()[1:], case / "home").code == 0
            assert attempt([*RUN, *named[1].split()], case / "home", wrapper=group).code == 0, proc.err
    assert seen == {False, True, "ran"}


def test_compiling_in_little_memory(case: Path, tmp_path: Path) -> None:
    """Kernels are compiled by as many processes as there is memory for, or not at all."""
    kernels = tmp_path / "kernels"
    variables = {"LLMCLI_KERNELS": str(kernels)}
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)

    def forget() -> None:
        """The largest, and a small one."""
        for file in [*kernels.glob("*/attention.rows*.o"), *kernels.glob("*/select.rows*.o")]:
            file.unlink()

    forget()
    before = snapshot(case)
    with cgroup(memory=100_000_000) as group:
        proc = attempt(RUN, case / "home", wrapper=group, variables=variables)
    assert proc.code == 7 and "not enough memory for the kernel compiler: it needs" in proc.lines[-1], proc.err
    assert_clean(proc, before, snapshot(case))
    forget()
    with cgroup(memory=220_000_000) as group:
        assert attempt(RUN, case / "home", wrapper=group, variables=variables).code == 0


SOAK = """
import os, sys
from llmcli import engine, memory
from llmcli.generate import generate, settings_for
with engine.opened(sys.argv[1]) as model:
    settings = settings_for(model, {"max_tokens": 8, "seed": 1})
    ids = model.tokenizer.encode("Once upon a time")
    for number in range(int(sys.argv[2])):
        list(generate(model, ids + [5 + number % 50] * (number % 30), settings, probs=3))
        if number in (100, int(sys.argv[2]) - 1):
            print(memory.resident(), len(os.listdir("/proc/self/fd")))
"""


def soak(count: int) -> None:
    """Case 59: memory and open files after the first hundred answers and at the end."""
    done = subprocess.run([sys.executable, "-c", SOAK, "demo", str(count)], capture_output=True, text=True, timeout=900, check=True)
    (warm, files), (end, files_at_end) = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    print(f"{count} answers: {warm:,} bytes, then {end:,}; {files} files, then {files_at_end}")
    assert end <= 1.02 * warm and files == files_at_end


def test_three_hundred_answers_take_no_more_memory() -> None:
    soak(300)


@pytest.mark.long
def test_five_thousand_answers_take_no_more_memory() -> None:
    soak(5000)
