"""Cases 15, 44, 58, 62: before a command is read and while kernels are compiled: imports that fail, the current folder, no home."""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import INSTALLED, assert_clean, attempt, ended, needs, snapshot

from llmcli import places
from terminal import environment

RUN = ["run", "-m", "tiny:none", "--temp", "0", "-n", "5", "Once upon a time"]
BROKEN = {
    "memory": ("raise MemoryError", 7, "not enough memory: Python cannot load its own parts"),
    "a page": ("raise OSError(12, 'Cannot allocate memory')", 7, "not enough memory"),
    "a library": ("raise ImportError('x.so: failed to map segment from shared object')", 7, "not enough memory"),
    "a call": ("raise SystemError('error return without exception set')", 7, "not enough memory"),
    "behind another": ("try:\n    raise MemoryError\nexcept MemoryError:\n    import nothing_of_this_name", 7, "not enough memory"),
    "a module": ("import nothing_of_this_name", 70, "cannot start: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "what speaks to terminals": (r"raise ValueError('\x1b]0;x\x07 a\nb')", 70, "cannot start: ValueError: \\x1b]0;x\\x07 a b"),
    "Ctrl-C": ("raise KeyboardInterrupt", 130, ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_import_that_fails(case: Path, tmp_path: Path, name: str) -> None:
    """Case 58: a module that everything needs, before any of our handlers stands (and not one that Python itself starts with)."""
    text, code, says = BROKEN[name]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "signal.py").write_text(f"{text}\n")
    paths = [str(tmp_path / "modules"), *filter(None, sys.path)]
    before = snapshot(case)
    proc = attempt(RUN, case / "home", variables={"PYTHONPATH": os.pathsep.join(paths)}, heals=[code], program=INSTALLED)
    assert proc.code == code and proc.out == b"" and says in proc.err.decode(), proc.err
    assert_clean(proc, before, snapshot(case))


CANARY = "import pathlib; pathlib.Path(__file__).with_name('ran').write_text(__name__)\n"
NAMES = ["json", "typing", "typer", "numpy", "tokenizers", "jinja2", "markupsafe", "numba", "llvmlite", "platformdirs", "rich", "ctypes"]


def test_no_code_of_the_current_folder_runs(case: Path) -> None:
    """Case 15: a model's folder as the current one, with modules that hide others; rendering and compiling are other processes."""
    source = case / "source" / "tiny"
    config = json.loads((source / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    for name in [*NAMES, "canary"]:
        (case / f"{name}.py").write_text(CANARY)
    paths = os.pathsep.join(path for path in sys.path if path and Path(path) != Path.cwd() or path == os.environ.get("PYTHONPATH"))
    subprocess.run([sys.executable, "-c", "import canary"], cwd=case, check=True, timeout=60)
    assert (case / "ran").read_text() == "canary", "what is run leaves a trace"
    (case / "ran").unlink()
    kernels = case / "home" / "cache" / "kernels"
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)
    for file in kernels.glob("*/select.rows*.o"):
        file.unlink()
    variables = {"PYTHONPATH": paths, "LLMCLI_KERNELS": str(kernels)}
    for words in (["import", "source/tiny", "--quant", "none", "--name", "chat"], ["run", "-m", "chat", "-n", "2", "a"], ["list"]):
        shutil.rmtree(case / "__pycache__", ignore_errors=True)
        before = snapshot(case)
        proc = attempt(words, case / "home", variables=variables)
        assert proc.code == 0, proc.err
        assert_clean(proc, before, snapshot(case))
        assert not (case / "ran").exists(), (case / "ran").read_text()
    assert list(kernels.glob("*/select.rows*.o")), "it was compiled meanwhile"


def test_a_user_without_a_home(case: Path) -> None:
    """Case 44: neither HOME nor an entry in the system's list of users, as in some containers. The current folder is no home."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    case.chmod(0o777)
    reading = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may be root's own
    nobody = [needs("setpriv"), "--reuid=54321", "--clear-groups", *reading, "env", "-u", "HOME", "-u", "LLMCLI_HOME"]
    for words, code in (
        (["run", "-m", "demo", "--temp", "0", "-n", "3", "Once"], 0),
        (["list"], 0),
        (["import", "source/tiny"], 7),
        (["pull", "org/model"], 7),
    ):
        before = snapshot(case)
        offline = {"HF_ENDPOINT": "http://127.0.0.1:9"}
        proc = attempt(words, case / "home", wrapper=nobody, variables=offline, heals=[0, 5])
        assert proc.code in ((5, 7) if words[0] == "pull" else (code,)), proc.err
        assert words[0] != "import" or str(places.NOWHERE) in proc.lines[-1]
        assert_clean(proc, before, snapshot(case))
        assert not (case / "~").exists()


def test_where_files_are_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "LLMCLI_HOME", "LLMCLI_KERNELS", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert (
        places.expanded("~/a/b") == places.NOWHERE / "a" / "b"
        and str(places.expanded("~nobody-of-this-name/a")) == "~nobody-of-this-name/a"
    )
    for place in (places.models(), places.history(), places.downloads(), places.kernels(), places.config()):
        assert place.is_relative_to(places.NOWHERE)


def compiling(case: Path, times: int, seed: int) -> dict[int, int]:
    """SIGINT, as a terminal sends it to all of a command's processes, at random moments of compiling; which codes came how often."""
    kernels, rng, codes = case / "home" / "cache" / "kernels", random.Random(seed), dict[int, int]()
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)
    own = environment({"LLMCLI_HOME": str(case / "home"), "LLMCLI_KERNELS": str(kernels)})
    command = [sys.executable, "-m", "llmcli", *RUN]
    assert attempt(RUN, case / "home", variables=own).code == 0
    for _ in range(times):
        for file in [*kernels.glob("*/select.rows*.o"), *kernels.glob("*/norm.*.o")]:
            file.unlink()
        before, since = snapshot(case), time.monotonic()
        process = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, cwd=case, start_new_session=True)
        assert process.stderr is not None
        first = process.stderr.readline()
        assert b"compiling" in first
        time.sleep(rng.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGINT)
        asked = time.monotonic()
        out, rest = process.communicate(timeout=60)
        assert time.monotonic() - asked < 5, "on a machine that does other things too"
        assert process.returncode in (0, 130), first + rest
        again = attempt(RUN, case / "home", variables=own)
        proc = ended(RUN, case / "home", process.returncode, out, first + rest, since, again=lambda code=again.code: code)
        assert_clean(proc, before, snapshot(case))
        assert not list(kernels.glob("*/.part-*"))
        with pytest.raises(ProcessLookupError):  # compilers too
            os.killpg(process.pid, 0)
        codes[process.returncode] = codes.get(process.returncode, 0) + 1
    return codes


def test_interrupts_while_kernels_are_compiled(case: Path) -> None:
    """Case 62."""
    assert compiling(case, 2, 62)[130]


@pytest.mark.long
def test_thirty_interrupts_while_kernels_are_compiled(case: Path) -> None:
    print(compiling(case, 30, 63))


def test_the_entry_point_is_the_guarded_one() -> None:
    """Both names of the command."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    named = re.findall(r'^(\w+) = "(llmcli\.[\w.:]+)"$', text, re.MULTILINE)
    assert named == [(name, "llmcli.__main__:command") for name in ("llm", "llmcli")]
