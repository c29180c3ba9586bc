"""Cases 101 and on: what these tests found, each as a case of its own."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest
from harness import assert_clean, attempt, snapshot
from made import models

import tokenizers_made
from llmcli import memory
from llmcli.errors import CorruptFile
from llmcli.models.spec import Spec
from llmcli.text.tokenizer import Tokenizer
from llmcli.weights import folder


@pytest.mark.parametrize("field", ["bos_token", "chat_template", "x"])
def test_half_a_character_in_a_models_files(case: Path, field: str) -> None:
    """101: it was an internal error."""
    file = case / "source" / "tiny" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "a\ud800"}))
    before = snapshot(case)
    proc = attempt(["import", "source/tiny", "--quant", "int8"], case / "home", heals=[3])
    assert proc.code == 3 and "tokenizer_config.json" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))


def test_json_with_a_name_that_is_not_utf8(case: Path) -> None:
    """102: the answer was no JSON."""
    (models(case) / "\udcff-int8.safetensors").write_bytes(b"x")
    before = snapshot(case)
    proc = attempt(["list", "--json"], case / "home")
    assert proc.code == 0 and any("\udcff" in entry["name"] for entry in json.loads(proc.out)["models"])
    assert_clean(proc, before, snapshot(case))


def test_messages_do_not_repeat_what_is_long(original: Path) -> None:
    """103: the name of an unknown field was repeated whole, whatever its length."""
    for text in ('{"%s": 1}' % ("a" * 100_000), '{"layers": [{"times": 1, "layer": {"%s": 1}}]}' % ("a" * 100_000)):
        with pytest.raises(CorruptFile) as caught:
            Spec.from_json(text)
        assert len(str(caught.value)) < 500


def test_a_small_file_takes_room_for_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """105: as much as the largest file might have was made room for, which a limit of address space refused."""
    (tmp_path / "config.json").write_bytes(b"{}")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), hard))
    try:
        assert folder.read_file(tmp_path / "config.json", 1 << 34) == b"{}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_current_folder_that_is_gone(case: Path) -> None:
    gone = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    for words in (["run", "-m", "tiny:none", "-n", "1", "-o", "x.txt", "a"], ["import", "."]):
        before = snapshot(case)
        proc = attempt(words, case / "home", wrapper=gone, heals=[0, 4])
        assert proc.code == 4 and "the current folder: it is not there any more" in proc.lines[-1]
        assert_clean(proc, before, snapshot(case))
        (case / "x.txt").unlink(missing_ok=True)  # of the re-run


def test_help_on_a_full_disk(case: Path) -> None:
    before = snapshot(case)
    for words in (["--help"], ["--version"], ["help", "run"]):
        proc = attempt(words, case / "home", wrapper=["sh", "-c", 'exec "$@" >/dev/full', "sh"])
        assert proc.code == 7 and "cannot write standard output: No space left on device" in proc.lines[-1]
        assert_clean(proc, before, snapshot(case))


def test_no_more_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer is read all the same: what keeps the library's panics off the screen needs files, what reads it does not."""
    data = tokenizers_made.byte_level()

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    for name in ("open", "dup"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            assert Tokenizer(data).size


def test_address_space_is_kept_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """104: a model was loaded where it just fitted, and the tokenizer's library ended the process by SIGABRT."""
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (1 << 40, 1 << 40))
    left = memory.limits()["address space (ulimit -v)"]
    assert left <= (1 << 40) - 2 * memory.RESERVED
