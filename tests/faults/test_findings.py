"""Cases 101 and on: what these tests found, each as a case of its own."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from harness import assert_clean, attempt, snapshot
from made import models

from llmcli import memory
from llmcli.errors import CorruptFile
from llmcli.models.spec import Spec
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


def test_address_space_is_kept_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """104: a model was loaded where it just fitted, and the tokenizer's library ended the process by SIGABRT."""
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (1 << 40, 1 << 40))
    left = memory.limits()["address space (ulimit -v)"]
    assert left <= (1 << 40) - 2 * memory.RESERVED
