"""`llm pull` against a hub, a network and a disk with faults: each has its exit code, its next step, and leaves nothing wrong."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

import random_model
from fakehub import FakeHub, Fault, fakehub
from llmcli.models import architectures
from llmcli.weights import fetch
from llmcli.weights import pull as pulling
from pulling import REPOSITORY, Puller, imported, pull, sharded, start, tensors_of, weights_size

__all__ = ["fakehub", "pull"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(autouse=True)
def repository(fakehub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of the repository; pauses between attempts are short."""
    real = time.sleep
    monkeypatch.setattr("llmcli.weights.hub.Patience.__init__.__defaults__", (lambda seconds: real(seconds / 20),))
    return fakehub.add(REPOSITORY, folder)


@pytest.fixture
def outside(tmp_path: Path) -> Any:
    """Checks that nothing was written beside the home."""
    before = set(tmp_path.rglob("*"))
    yield
    new = {path for path in tmp_path.rglob("*") if tmp_path / "home" not in (path, *path.parents)} - before
    assert not new


def recovers(pull: Puller, folder: Path, tmp_path: Path) -> None:
    """A plain re-run ends complete and right."""
    pull.hub.fault = Fault("none")
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)
    assert pull.leftovers() == []


def test_a_corrupt_body_is_fetched_once_more(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.fault = Fault("corrupt", times=2)  # the header's range is the first of them
    recovered = pull(REPOSITORY)
    assert recovered == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)


def test_a_corrupt_body_twice_is_refused(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.fault = Fault("corrupt")
    assert "its SHA-256 is not the promised one, twice" in pull.error(6, REPOSITORY)
    assert not pull.path().exists() and not any(name.endswith((".part", ".safetensors")) for name in pull.leftovers())
    recovers(pull, folder, tmp_path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("truncate", amount=5_000), "the connection was cut"),
        (Fault("stall", amount=5_000), "no answer in time"),
        (Fault("trickle"), "less than 1024 bytes a second"),
        (Fault("gzip"), "a compressed body that was not asked for"),
        (Fault("length", amount=-(1 << 30)), "the connection was cut"),
        (Fault("status", code=500, where="model.safetensors"), "the hub answers 500"),
        (Fault("status", code=503, where="tree"), "the hub answers 503"),
        (Fault("status", code=429, where="revision", headers={"Retry-After": "1"}), "too many requests"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_network_faults_end_in_time_and_are_resumed(
    pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path, fault: Fault, says: str
) -> None:
    fakehub.fault = fault
    begun = time.monotonic()
    message = pull.error(5, REPOSITORY, HF_HUB_DOWNLOAD_TIMEOUT="0.3")
    assert says in message and "try again" in message
    assert time.monotonic() - begun < 8
    recovers(pull, folder, tmp_path)


def test_faults_that_pass_are_not_noticed(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.fault = Fault("truncate", times=3, amount=400_000)
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)
    assert fakehub.sent < 1.1 * weights_size(folder)


@pytest.mark.parametrize("amount", [-100, 100])
def test_a_wrong_length_is_not_believed(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path, amount: int) -> None:
    """Too short, the rest comes with another request; too long, what is listed is what counts."""
    fakehub.fault = Fault("length", times=3, amount=amount)
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)


@pytest.mark.parametrize("licence", ["mit\nllm: error: forged: line. now", "\x1b]0;t\x07", "x" * 10_000])
def test_a_licence_that_is_no_name_is_not_shown(pull: Puller, fakehub: FakeHub, licence: str) -> None:
    fakehub.fault = Fault("licence", headers={"licence": licence})
    assert pull(REPOSITORY) == 0, pull.err
    assert "no licence is named" in pull.err and licence[-10:] not in pull.err


def test_retry_after_is_honoured(pull: Puller, fakehub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("llmcli.weights.hub.Patience.__init__.__defaults__", (waited.append,))
    fakehub.fault = Fault("status", times=2, code=429, where="revision", headers={"Retry-After": "7"})
    assert pull(REPOSITORY) == 0, pull.err
    assert waited == [7, 7]
    pull.path().unlink()
    fakehub.fault = Fault("status", code=429, where="revision", headers={"Retry-After": "7200"})
    assert "try again in 7,200 seconds" in pull.error(5, REPOSITORY)
    assert waited == [7, 7]


def test_a_hub_that_is_not_there(pull: Puller) -> None:
    assert "Connection refused" in pull.error(5, REPOSITORY, HF_ENDPOINT="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("commit"), 'the commit "../../../evil"'),
        (Fault("etag", headers={"etag": "../../../evil"}), "the ETag"),
        (Fault("etag", headers={"etag": "0" * 5000}), "the ETag"),
        (Fault("etag", headers={"etag": 'W/"../../../evil"'}), "the ETag"),
        (Fault("etag", headers={"etag": ""}), "the ETag"),
        (Fault("moving"), "the commit"),
        (Fault("name", headers={"name": "../../../evil.safetensors"}), "the file name"),
        (Fault("name", headers={"name": "/etc/evil.safetensors"}), "the file name"),
        (Fault("name", headers={"name": "evil\0.safetensors"}), "the file name"),
        (Fault("name", headers={"name": "e" * 5000 + ".safetensors"}), "the file name"),
        (Fault("name", headers={"name": "..\\evil.safetensors"}), "the file name"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_hostile_answers_write_nothing(
    pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path, outside: None, fault: Fault, says: str
) -> None:
    fakehub.fault = fault
    message = pull.error(6, REPOSITORY)
    assert says in message and "not to be trusted" in message and len(message) < 500
    assert not list(tmp_path.rglob("*evil*"))
    recovers(pull, folder, tmp_path / "home")


@pytest.mark.parametrize("name", ["../evil.safetensors", "/evil.safetensors", "sub/evil.safetensors", ".evil.safetensors", "x.bin"])
def test_a_hostile_index_opens_nothing(pull: Puller, fakehub: FakeHub, tmp_path: Path, outside: None, name: str) -> None:
    source = sharded(tmp_path / "home" / "source", 2)
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002.safetensors", name))
    fakehub.add("org/other", source)
    assert "is not the name of a file" in pull.error(3, "org/other")
    assert fakehub.sent == 0


def test_all_files_are_of_one_commit(pull: Puller, fakehub: FakeHub, folder: Path, repository: str, tmp_path: Path) -> None:
    other = random_model.write_folder(tmp_path / "other", weights=random_model.tensors(seed=1))
    real = fakehub.add
    seen = fakehub.requests

    class Switching(list):  # type: ignore[type-arg]
        def append(self, request: Any) -> None:
            super().append(request)
            if "config.json" in request.path:
                real(REPOSITORY, other)

    fakehub.requests = Switching(seen)
    assert pull(REPOSITORY) == 0, pull.err
    assert fakehub.heads[REPOSITORY] != repository
    assert tensors_of(pull.path()) == imported(folder, tmp_path)


def test_a_gated_model(pull: Puller, fakehub: FakeHub, folder: Path) -> None:
    fakehub.add(REPOSITORY, folder, gated=True)
    message = pull.error(4, REPOSITORY)
    assert f"Ask for access at {fakehub.url}/{REPOSITORY}, then set HF_TOKEN" in message
    message = pull.error(4, REPOSITORY, HF_TOKEN="hf_wrong_canary")
    assert "check that HF_TOKEN's account has it" in message and "canary" not in pull.err
    assert pull(REPOSITORY, HF_TOKEN="hf_right") == 0, pull.err


def test_the_token_stays_with_the_hub(pull: Puller, fakehub: FakeHub, folder: Path) -> None:
    fakehub.add(REPOSITORY, folder, gated=True)
    assert pull(REPOSITORY, "--debug", HF_TOKEN="hf_right") == 0, pull.err
    sent = {request.origin for request in fakehub.requests if "Authorization" in request.headers}
    assert sent == {"hub"} and {request.origin for request in fakehub.requests} == {"hub", "cdn"}
    assert "hf_right" not in pull.out + pull.err
    for path in pull.home.rglob("*"):
        assert path.is_dir() or b"hf_right" not in path.read_bytes()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("commit"), 6),
        (Fault("corrupt"), 6),
        (Fault("location", headers={"to": "http://example.com"}), 5),
        (Fault("status", code=500, where="tree"), 5),
        (Fault("status", code=404, where="resolve"), 4),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_no_traceback_has_the_token(pull: Puller, fakehub: FakeHub, folder: Path, fault: Fault, code: int) -> None:
    fakehub.add(REPOSITORY, folder, gated=True)
    fakehub.fault = fault
    assert pull(REPOSITORY, "--debug", HF_TOKEN="hf_right") == code, pull.err
    assert "Traceback" in pull.err and "hf_right" not in pull.out + pull.err


def test_the_token_of_the_hubs_own_tools(pull: Puller, fakehub: FakeHub, folder: Path) -> None:
    fakehub.add(REPOSITORY, folder, gated=True)
    (pull.home / "hf").mkdir(parents=True)
    (pull.home / "hf" / "token").write_text("hf_right\n")
    assert pull(REPOSITORY) == 0, pull.err


@pytest.mark.parametrize("place", ["http://example.com", "ftp://127.0.0.1", "file:///etc/passwd", "http://user@127.0.0.1"])
def test_redirects_that_are_not_safe_are_refused(pull: Puller, fakehub: FakeHub, place: str) -> None:
    fakehub.fault = Fault("location", headers={"to": place})
    assert pull(REPOSITORY) == 5, pull.err
    assert fakehub.sent == 0


def test_a_redirect_without_end(pull: Puller, fakehub: FakeHub) -> None:
    fakehub.moved[REPOSITORY] = REPOSITORY
    assert pull(REPOSITORY) == 5, pull.err
    assert len(fakehub.requests) < 20


def test_a_repository_that_moved(pull: Puller, fakehub: FakeHub, folder: Path) -> None:
    fakehub.moved["old/model"] = REPOSITORY
    assert pull("old/model") == 0, pull.err
    assert f"old/model has moved to {REPOSITORY}" in pull.err
    fakehub.requests.clear()
    assert pull("old/model") == 0 and not fakehub.requests


def test_what_is_not_there(pull: Puller) -> None:
    assert 'no repository "org/nothing"' in pull.error(4, "org/nothing")
    assert 'has no revision "v9"' in pull.error(4, f"{REPOSITORY}@v9")


def test_pickled_weights_are_refused(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    source = random_model.write_folder(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    fakehub.add("org/pickled", source)
    message = pull.error(4, "org/pickled")
    assert "no safetensors weights" in message and "can run code" in message
    assert not fakehub.asked(".bin")


def test_an_unsupported_model_is_refused_before_its_weights(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    strange = {**random_model.CONFIG, "architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    source = random_model.write_folder(tmp_path / "source", strange, random_model.tensors())
    fakehub.add("org/strange", source)
    message = pull.error(3, "org/strange")
    assert "unsupported architecture StrangeForCausalLM" in message and all(name in message for name in architectures.supported())
    assert not fakehub.asked(".safetensors") and not fakehub.asked("tokenizer") and pull.leftovers() == []


def test_an_unknown_field_is_refused_or_allowed(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    fakehub.add("org/spicy", random_model.write_folder(tmp_path / "source", {**random_model.CONFIG, "logit_spice": 3}))
    message = pull.error(3, "org/spicy")
    assert '"logit_spice"' in message and "--allow-config" in message and not fakehub.asked("tokenizer")
    assert pull("org/spicy", "--allow-config", "logit_spice") == 0, pull.err


def test_weights_that_do_not_fit_are_refused_by_their_headers(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    tensors = random_model.tensors()
    del tensors["model.norm.weight"]
    fakehub.add("org/less", random_model.write_folder(tmp_path / "source", weights=tensors))
    assert '"model.norm.weight" is missing' in pull.error(3, "org/less")
    assert fakehub.sent <= pulling.FIRST_BYTES


def test_a_full_disk_is_noticed_first(pull: Puller, fakehub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(pulling.shutil, "disk_usage", lambda path: usage)
    message = pull.error(7, REPOSITORY)
    assert "it needs 2.3 MiB and the disk has 1.0 MiB free" in message
    assert fakehub.sent <= pulling.FIRST_BYTES


def test_too_little_memory_is_noticed_first(pull: Puller, fakehub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.memory.available", lambda: 100_000)
    assert "No smaller form of it fits: close other programs, or use a smaller model" in pull.error(7, REPOSITORY)
    assert fakehub.sent <= pulling.FIRST_BYTES


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_whatever_fails_on_the_disk_is_resumed(
    pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(os, call), 0
    monkeypatch.setattr(fetch, "PIECE", 128 << 10)
    for fail_at in (0, 1, 2, 5, 12, 20):
        calls = 0

        def failing(*arguments: Any, fail_at: int = fail_at) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            code = pull(REPOSITORY)
        assert code == (7 if calls > fail_at else 0), pull.err
        if code == 0:
            break
        assert "No space left on device" in pull.err and not pull.path().exists()
    recovers(pull, folder, tmp_path)
    assert fakehub.sent < 1.6 * weights_size(folder)


def test_an_interrupt_leaves_what_can_be_resumed(fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    import signal

    fakehub.fault = Fault("slow", amount=400_000)
    process = start(fakehub, tmp_path, REPOSITORY)
    while fakehub.sent < 300_000 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert time.monotonic() - begun < 5
    assert len(list(tmp_path.rglob("*.part"))) == 1
