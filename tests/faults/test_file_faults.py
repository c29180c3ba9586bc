"""Cases 8, 9, 11, 13, 15, 40 to 42, 65: damaged and hostile model files, and files that change while they are used."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from harness import assert_clean, attempt, ended, needs, snapshot
from made import models

import random_model
from llmcli.errors import HashMismatch, LlmError
from llmcli.weights import packed
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File
from small_model import checkpoint, load, path
from terminal import environment
from test_commands import answer, llm

__all__ = ["checkpoint", "path"]  # fixtures
RUN = ["run", "-m", "tiny:none", "--temp", "0", "-n", "400", "-c", "640", "Once upon a time"]
"""Long enough for something to happen meanwhile."""
SHORT = ["run", "-m", "tiny:none", "-n", "2", "Once upon a time"]


def test_three_hundred_flipped_bits(path: Path, checkpoint: Checkpoint) -> None:
    """Case 8: every one is found by loading, and by `llm verify`; in the weights always as a wrong checksum (6)."""
    content, rng, caught = path.read_bytes(), random.Random(8), 0
    with File(path) as file:
        start = file.data_start
    for number in range(300):
        place = rng.randrange(start) if number % 4 == 0 else rng.randrange(start, len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(LlmError) as by_loading:
            load(path)
        with pytest.raises(LlmError) as by_verifying, packed.open(path) as model:
            model.verify()
        for error in (by_loading.value, by_verifying.value):
            assert isinstance(error, HashMismatch) if place >= start else error.code in (3, 6)
        caught += 1
    assert caught == 300


def test_a_flipped_bit_stops_every_command(case: Path) -> None:
    file = models(case) / "tiny-none.safetensors"
    content, rng = file.read_bytes(), random.Random(9)
    for words in (["verify", "tiny"], SHORT, ["quantize", "tiny", "--quant", "int4"], ["score", "-m", "tiny:none", "a b"]):
        changed = bytearray(content)
        changed[rng.randrange(len(content) // 2, len(content))] ^= 4
        file.write_bytes(changed)
        before = snapshot(case)
        proc = attempt(words, case / "home", heals=[6])
        assert proc.code == 6 and not (proc.out and words[0] != "verify"), proc
        assert_clean(proc, before, snapshot(case))
        file.write_bytes(content)
        assert proc.again() == 0


def disturbed(case: Path, times: int, seed: int) -> dict[int, int]:
    """How often which exit code came when the file of a running model is cut off, emptied, replaced or removed at a random moment."""
    file = models(case) / "tiny-none.safetensors"
    content, rng = file.read_bytes(), random.Random(seed)
    other = case / "home" / "other"

    def replaced() -> None:
        other.write_bytes(content[: len(content) // 2])
        os.replace(other, file)

    ways: list[Callable[[], object]] = [
        lambda: os.truncate(file, 0),
        lambda: os.truncate(file, rng.randrange(len(content))),
        lambda: file.write_bytes(rng.randbytes(len(content))),
        replaced,
        file.unlink,
    ]
    surroundings = environment({"LLMCLI_HOME": str(case / "home")})
    command = [sys.executable, "-m", "llmcli", *RUN]
    right = subprocess.run(command, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True).stdout
    codes: dict[int, int] = {}
    again = cache(lambda: attempt(RUN, case / "home").code)  # the file is whole again each time
    for number in range(times):
        before, since = snapshot(case), time.monotonic()
        process = subprocess.Popen(command, env=surroundings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(rng.uniform(0.1, 1.2))
        ways[number % len(ways)]()
        out, err = process.communicate(timeout=60)
        after = {**snapshot(case), str(file.relative_to(case)): before[str(file.relative_to(case))]}  # changed by the test itself
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        told = err.decode()
        assert process.returncode in (0, 3, 4, 6), told
        assert (out == right) if process.returncode == 0 else (out == b"" and told.startswith("llm: error: ")), told
        assert_clean(ended(RUN, case / "home", process.returncode, out, err, since, again=again), before, after)
        codes[process.returncode] = codes.get(process.returncode, 0) + 1
    return codes


def test_a_file_that_changes_under_a_running_model(case: Path) -> None:
    assert sum(disturbed(case, 5, 3).values()) == 5


@pytest.mark.long
def test_fifty_files_that_change_under_a_running_model(case: Path) -> None:
    print(disturbed(case, 50, 4))


def test_rm_and_a_new_file_let_a_running_model_finish(case: Path) -> None:
    """Case 42."""
    command = [sys.executable, "-m", "llmcli", *RUN, "--jsonl"]
    with subprocess.Popen(command, env=environment({"LLMCLI_HOME": str(case / "home")}), stdin=subprocess.DEVNULL, stdout=-1) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        answer(llm(case / "home", "rm", "tiny"))
        answer(llm(case / "home", "import", str(case / "source" / "tiny"), "--quant", "none"))
        rest = process.stdout.read()
    assert process.returncode == 0 and json.loads((first + rest).splitlines()[-1])["type"] == "summary"


CANARY = "import pathlib; pathlib.Path(__file__).with_name('ran').write_text('x')\n"


def test_no_code_of_a_model_runs(case: Path) -> None:
    """Case 14, 15: a pickle beside the weights, modules named by auto_map, and modules that hide ours."""
    source = case / "source" / "tiny"
    names = ["modeling_tiny.py", "configuration_tiny.py", "tokenization_tiny.py", "sitecustomize.py", "numpy.py", "json.py", "llmcli.py"]
    for name in names:
        (source / name).write_text(CANARY)
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    hooks = {"AutoConfig": "configuration_tiny.C", "AutoModelForCausalLM": "modeling_tiny.M"}
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": hooks, "trust_remote_code": True}))
    found = json.loads((source / "tokenizer_config.json").read_text())
    remote = {"auto_map": {"AutoTokenizer": ["tokenization_tiny.T", None]}, "tokenizer_class": "tokenization_tiny.T"}
    (source / "tokenizer_config.json").write_text(json.dumps({**found, **remote}))
    before = snapshot(case)
    proc = attempt(["import", "source/tiny", "--quant", "int8", "--name", "canary"], case / "home", heals=[0, 3])
    assert proc.code in (0, 3), proc.err
    assert_clean(proc, before, snapshot(case))
    if proc.code == 0:
        proc = attempt(["run", "-m", "canary", "-n", "3", "a"], case / "home")
        assert proc.code == 0, proc.err
    assert not list(case.rglob("ran"))
    assert attempt(["run", "--trust-remote-code", "a"], case / "home").code == 2


@pytest.mark.parametrize("way", ["an index", "a link"])
def test_only_the_models_own_files_are_opened(case: Path, tmp_path: Path, way: str) -> None:
    """Case 11: what `llm import` opens of a folder whose index or links lead elsewhere."""
    source, log = case / "source" / "tiny", tmp_path / "log"
    (tmp_path / "secret").write_text("{}")
    if way == "an index":
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "../../secret", "model.embed_tokens.weight": "/etc/passwd"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        (source / "model.safetensors").unlink()
    else:
        (source / "generation_config.json").symlink_to(tmp_path / "secret")
        (source / "LICENSE").symlink_to("/etc/passwd")
    wrapper = [needs("strace"), "-f", "-qq", "-y", "-e", "trace=openat,open", "-o", str(log)]
    before = snapshot(case)
    proc = attempt(["import", "source/tiny"], case / "home", wrapper=wrapper, heals=[3])
    assert proc.code == 3, proc.err
    assert_clean(proc, before, snapshot(case))
    # What was asked for, and, in brackets, what that is behind all links.
    opened = set(re.findall(r'open(?:at)?\((?:AT_FDCWD(?:<[^>]*>)?, )?"([^"]+)"', log.read_text()))
    opened |= set(re.findall(r"= \d+<([^>]+)>", log.read_text()))
    assert any("/tiny/" in name or name.endswith("/tiny") for name in opened)
    assert not [name for name in opened if name.endswith(("passwd", "/secret", "generation_config.json"))]


NAMES = ["\x1b]0;owned\x07\u202eevil", "a\nllm: error: forged: line\x9b31m"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_a_terminal_would_obey(case: Path, name: str) -> None:
    """Case 65: tensors, fields and files with such names, and model names."""
    source = case / "source" / "tiny"
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, name: 1}))
    hostile = case / "source" / f"x{name}"
    hostile.mkdir()
    shutil.copy(source / "tokenizer.json", hostile)
    random_model.write_folder(source.with_name("extra"), config, {**random_model.tensors(config), name: np.zeros(3, np.float32)})
    commands = [["import", place] for place in ("source/tiny", "source/extra", str(hostile))]
    for words in [*commands, ["run", "-m", name, "a"], ["show", name]]:
        before = snapshot(case)
        proc = attempt(words, case / "home", heals=[2, 3, 4])
        assert proc.code in (2, 3, 4), proc.err
        assert not [c for c in proc.err.decode() if c != "\n" and not c.isprintable()] and proc.err.count(b"\n") == 1
        assert_clean(proc, before, snapshot(case))


def test_weights_of_nothing_but_zeros_and_tiny_numbers(case: Path) -> None:
    """Case 9: no scale divides by zero."""
    config = random_model.CONFIG
    weights = {name: np.zeros_like(array) for name, array in random_model.tensors(config).items()}
    weights["model.layers.0.mlp.up_proj.weight"][:] = 1e-42
    random_model.write_folder(case / "source" / "zero", config, weights)
    for quant in ("int8", "int4", "none"):
        before = snapshot(case)
        proc = attempt(["import", "source/zero", "--quant", quant], case / "home")
        assert proc.code == 0, proc.err
        assert_clean(proc, before, snapshot(case))
        proc = attempt(["next", "-m", f"zero:{quant}", "--json", "a"], case / "home")
        found = json.loads(proc.out)["candidates"]
        assert proc.code == 0 and all(abs(c["prob"] - 1 / config["vocab_size"]) < 1e-6 for c in found)


def test_junk_among_the_models(case: Path) -> None:
    """Case 41."""
    here = models(case)
    (here / "folder-int8.safetensors").mkdir()
    (here / "dangling-int8.safetensors").symlink_to(here / "nowhere")
    (here / "outside-int4.safetensors").symlink_to(case / "source" / "tiny" / "model.safetensors")
    (here / "\udcff-int8.safetensors").write_bytes(b"x")
    (here / "empty-int8.safetensors").write_bytes(b"")
    os.mkfifo(here / "pipe-int8.safetensors")
    for words in (["list"], ["list", "--json"], ["show", "tiny"], ["run", "-m", "tiny:none", "-n", "2", "a"], ["rm", "outside"], ["clean"]):
        before = snapshot(case)
        proc = attempt(words, case / "home", heals=[0, 3, 4], limit=20)
        assert proc.code == 0 or words[0] == "rm", proc.err
        assert_clean(proc, before, snapshot(case))
    for name in ("folder", "dangling", "empty", "pipe"):
        proc = attempt(["run", "-m", name, "a"], case / "home", heals=[3, 4], limit=20)
        assert proc.code in (3, 4), proc.err
    assert (case / "source" / "tiny" / "model.safetensors").is_file()


def killed_runs(case: Path, kills: int, seed: int) -> int:
    """Kills `llm run -o` at that many random moments, some with kernels that are compiled again; how many runs it took."""
    kernels = case / "home" / "cache" / "kernels"
    shutil.copytree(os.environ["LLMCLI_KERNELS"], kernels, symlinks=True)
    out, rng, met = case / "home" / "data" / "answer.txt", random.Random(seed), 0
    words = [*RUN, "-o", str(out)]
    own = {"LLMCLI_KERNELS": str(kernels)}
    first = attempt(words, case / "home", variables=own)
    assert first.code == 0, first.err
    usual, right = first.seconds, out.read_bytes()
    for number in itertools.count():
        if met == kills:
            return number
        out.write_bytes(b"the old answer")
        if number % 8 == 0:
            for file in kernels.glob("*/select.rows*.o"):
                file.unlink()
        before = snapshot(case)
        proc = attempt(words, case / "home", kill_after=rng.uniform(0.2, 1.05) * usual, variables=own)
        met += proc.killed
        usual = usual if proc.killed else min(usual, proc.seconds)
        assert out.read_bytes() in (b"the old answer", right)
        assert_clean(proc, before, snapshot(case))
        assert out.read_bytes() == right
    raise AssertionError


def test_killed_runs(case: Path) -> None:
    assert killed_runs(case, 3, 5) >= 3


@pytest.mark.long
def test_sixty_killed_runs(case: Path) -> None:
    print(f"60 kills in {killed_runs(case, 60, 6)} runs")


def test_killed_by_the_user_while_it_imports(case: Path) -> None:
    """SIGINT and SIGTERM at random moments of a conversion: 130 or 143, and nothing is left."""
    rng = random.Random(7)
    surroundings = environment({"LLMCLI_HOME": str(case / "home")})
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, -signal.SIGHUP)):
        before, since = snapshot(case), time.monotonic()
        command = [sys.executable, "-m", "llmcli", "import", str(case / "source" / "tiny"), "--quant", "int4"]
        process = subprocess.Popen(command, env=surroundings, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1)
        assert process.stderr is not None
        first = process.stderr.readline()  # it is at work
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(number)
        out, rest = process.communicate(timeout=30)
        err = first + rest
        assert process.returncode in (0, code)
        proc = ended(command[3:], case / "home", process.returncode, out, err, since, ends=[signal.SIGHUP])
        assert_clean(proc, before, snapshot(case))
        assert [name for name in os.listdir(models(case)) if name.startswith(".")] == []
