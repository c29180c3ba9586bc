"""`llm pull` where nothing is wrong but the process itself: killed, waiting, offline, with little memory and disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import random_model
from fakehub import FakeHub, Fault, fakehub
from llmcli.weights import fetch, hub, packed
from pulling import REPOSITORY, Puller, config, imported, pull, sharded, start, tensors_of, variables, weights_size
from terminal import on_terminal

__all__ = ["fakehub", "pull"]
MODELS_TOML = '[tiny]\nrepository = "org/model"\nparameters = 1\ncontext = 1\nquantization = "int4"\ngated = false\nabout = "x"\n'


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write_folder(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("three"), 3)


@pytest.mark.parametrize("quant", ["int8", "int4", "none"])
def test_a_pulled_model_is_the_imported_one(pull: Puller, fakehub: FakeHub, single: Path, tmp_path: Path, quant: str) -> None:
    commit = fakehub.add(REPOSITORY, single)
    assert pull(REPOSITORY, "--quant", quant) == 0, pull.err
    path = pull.path(f"org--model-{quant}")
    assert pull.out == f"{path}\n"
    assert tensors_of(path) == imported(single, tmp_path, quant)
    with packed.open(path) as file:
        assert (file.name, file.source, file.revision) == (REPOSITORY, REPOSITORY, commit)
    assert pull.leftovers() == []
    assert all(request.headers["Accept-Encoding"] == "identity" for request in fakehub.requests)


def test_shards_are_packed_and_removed_one_by_one(pull: Puller, fakehub: FakeHub, three: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, three)
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(three, tmp_path)
    assert pull.leftovers() == [] and list((pull.home / "cache" / "downloads").iterdir()) == []


def test_what_is_coming_is_said_first(pull: Puller, fakehub: FakeHub, single: Path) -> None:
    commit = fakehub.add(REPOSITORY, single, gated=True)
    assert pull(REPOSITORY, HF_TOKEN="hf_right") == 0, pull.err
    first, second, *_ = pull.err.splitlines()
    assert first == f"{REPOSITORY} at {commit[:12]}: 0.4 million parameters, licence mit, gated (this account has access)"
    assert "1.6 MiB to download" in second and "of memory with 640 tokens" in second and "MiB free" in second
    assert pull.err.splitlines()[-1].startswith("100%") and "/s" in pull.err


def test_a_terminal_shows_speed(fakehub: FakeHub, single: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, single)
    fakehub.fault = Fault("slow", amount=2_000_000)
    code, shown = on_terminal(["-m", "llmcli", "pull", REPOSITORY], variables(fakehub, tmp_path))
    assert code == 0 and all(text in shown for text in (b"MB/s", b"/1.6 MiB", b"0:00:0", b"licence mit")), shown


def test_an_alias_and_a_name(pull: Puller, fakehub: FakeHub, single: Path) -> None:
    fakehub.add(REPOSITORY, single)
    (pull.home / "config").mkdir(parents=True)
    (pull.home / "config" / "models.toml").write_text(MODELS_TOML)
    assert pull("tiny") == 0, pull.err
    assert pull.path("tiny-int4").is_file()
    assert pull("tiny:int8", "--name", "mine") == 0, pull.err
    assert pull.path("mine-int8").is_file()
    assert "Did you mean tiny?" in pull.error(4, "tinny")
    assert "llm run -m demo" in pull.error(2, "demo")
    assert "different quantizations" in pull.error(2, "tiny:int8", "--quant", "int4")


@pytest.mark.parametrize("word", ["org/model@../x", "org/model@", "../model", "org/..", "org/model/file", "org/a--b", "a b/c", ""])
def test_impossible_references(pull: Puller, fakehub: FakeHub, word: str) -> None:
    assert pull(word) in (2, 4) and not fakehub.requests and pull.leftovers() == []


def test_running_what_is_absent_says_how_to_get_it(pull: Puller, fakehub: FakeHub) -> None:
    assert pull("-m", REPOSITORY, "--no-stdin", "hello", command="run") == 4
    assert f"llm pull {REPOSITORY} gets it" in pull.err and not fakehub.requests


def test_what_is_here_needs_no_network(pull: Puller, fakehub: FakeHub, single: Path) -> None:
    commit = fakehub.add(REPOSITORY, single)
    assert pull(REPOSITORY) == 0
    fakehub.requests.clear()
    for words in ([REPOSITORY], [f"{REPOSITORY}@{commit}"], [REPOSITORY, "--offline"]):
        assert pull(*words) == 0 and "here already" in pull.err
    assert not fakehub.requests


def test_a_new_commit_is_got_when_it_is_asked_for(pull: Puller, fakehub: FakeHub, single: Path, three: Path) -> None:
    old, new = fakehub.add(REPOSITORY, single), fakehub.add(REPOSITORY, three)
    assert pull(f"{REPOSITORY}@{old}", "--name", "m") == 0, pull.err
    assert pull(f"{REPOSITORY}@main", "--name", "m") == 0, pull.err
    with packed.open(pull.path("m-int8")) as file:
        assert file.revision == new


def test_an_abandoned_commit_is_removed(pull: Puller, fakehub: FakeHub, single: Path, three: Path) -> None:
    fakehub.add(REPOSITORY, three)
    fakehub.fault = Fault("status", code=404, where="00002-of")
    pull.error(4, REPOSITORY)
    assert any("00001-of" in name for name in pull.leftovers())
    fakehub.fault = Fault("none")
    fakehub.add(REPOSITORY, single)
    assert pull(REPOSITORY) == 0, pull.err
    assert pull.leftovers() == []


def test_kept_sources_serve_another_quantization(pull: Puller, fakehub: FakeHub, three: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, three)
    assert pull(REPOSITORY, "--keep-source") == 0, pull.err
    before = fakehub.sent
    assert pull(REPOSITORY, "--quant", "int4", "--offline", "--keep-source") == 0, pull.err
    assert fakehub.sent == before
    assert tensors_of(pull.path("org--model-int4")) == imported(three, tmp_path, "int4")
    assert pull(REPOSITORY, "--quant", "none") == 0 and fakehub.sent == before  # what is kept stays kept
    sources = list((pull.home / "cache").rglob("*.safetensors"))
    assert len(sources) == 3 and sum(path.stat().st_size for path in sources) == weights_size(three)


def test_offline_says_what_is_missing(pull: Puller, fakehub: FakeHub, three: Path) -> None:
    fakehub.add(REPOSITORY, three)
    assert "missing: config.json" in pull.error(4, REPOSITORY, "--offline")
    fakehub.fault = Fault("status", code=404, where="00002-of")
    pull.error(4, REPOSITORY)
    fakehub.requests.clear()
    message = pull.error(4, REPOSITORY, HF_HUB_OFFLINE="1")
    assert "model-00002-of-00003.safetensors" in message and "config.json" not in message
    assert not fakehub.requests


def test_the_hubs_own_cache_is_used_and_left_alone(pull: Puller, fakehub: FakeHub, single: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, single)
    blobs = pull.home / "hf" / "hub" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    source = single / "model.safetensors"
    blob = blobs / hashlib.sha256(source.read_bytes()).hexdigest()
    shutil.copy(source, blob)
    assert pull(REPOSITORY) == 0, pull.err
    assert fakehub.sent == 0 and blob.is_file()
    assert tensors_of(pull.path()) == imported(single, tmp_path)


@pytest.mark.parametrize("at", [-1, 0, 30], ids=["weights", "length", "header"])
def test_a_damaged_file_in_the_hubs_cache_is_not_used(pull: Puller, fakehub: FakeHub, single: Path, tmp_path: Path, at: int) -> None:
    commit = fakehub.add(REPOSITORY, single)
    snapshot = pull.home / "hf" / "hub" / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    data = bytearray((single / "model.safetensors").read_bytes())
    data[at] ^= 1
    (snapshot / "model.safetensors").write_bytes(data)
    assert pull(REPOSITORY) == 0, pull.err
    assert fakehub.sent > 0 and tensors_of(pull.path()) == imported(single, tmp_path)


def test_large_files_come_in_several_ranges(
    pull: Puller, fakehub: FakeHub, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SMALLEST_SEGMENT", 256 << 10)
    fakehub.add(REPOSITORY, single)
    fakehub.fault = Fault("truncate", times=3, amount=300_000)
    assert pull(REPOSITORY) == 0, pull.err
    ranges = [r.headers["Range"] for r in fakehub.requests if r.origin == "cdn" and "Range" in r.headers]
    assert len(ranges) == 1 + fetch.CONNECTIONS + 3
    assert tensors_of(pull.path()) == imported(single, tmp_path)
    assert fakehub.sent < 1.03 * weights_size(single)


def test_without_ranges_the_file_comes_whole(
    pull: Puller, fakehub: FakeHub, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SMALLEST_SEGMENT", 256 << 10)
    fakehub.add(REPOSITORY, single)
    fakehub.fault = Fault("no_range")
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(single, tmp_path)


def used(home: Path) -> int:
    """Bytes of disk that the files under a folder take."""
    total = 0
    for folder, _, names in os.walk(home):  # which passes over what is removed meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def kill_at_random(fakehub: FakeHub, folder: Path, home: Path, kills: int, rate: int) -> None:
    """Kills that many pulls at random points, then lets one end."""
    fakehub.add(REPOSITORY, folder)
    size, rng = weights_size(folder), random.Random(7)
    points = sorted(rng.uniform(0.0, 1.02) * size for _ in range(kills))
    fakehub.fault = Fault("slow", amount=rate)
    most = 0
    for point in points:
        process = start(fakehub, home, REPOSITORY)
        deadline = time.monotonic() + 60
        while process.poll() is None and fakehub.sent < point and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.communicate()
        most = max(most, used(home))
    fakehub.fault = Fault("none")
    process = start(fakehub, home, REPOSITORY)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    path = home / "data" / "models" / "org--model-int8.safetensors"
    assert tensors_of(path) == imported(folder, home)
    print(f"{kills} kills: {fakehub.sent / size:.3f} times the bytes")
    assert fakehub.sent <= 1.1 * size
    assert most <= path.stat().st_size + max(shard.stat().st_size for shard in folder.glob("*.safetensors")) + 2e6
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == [path.name]
    assert not [p for p in (home / "cache" / "downloads").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_killed_pulls_are_resumed(fakehub: FakeHub, tmp_path: Path) -> None:
    kill_at_random(fakehub, sharded(tmp_path / "source", 3, config()), tmp_path / "home", 8, 20_000_000)


@pytest.mark.long
def test_a_hundred_killed_pulls_are_resumed(fakehub: FakeHub, tmp_path: Path) -> None:
    kill_at_random(fakehub, sharded(tmp_path / "source", 3, config(1024, 3, 4096)), tmp_path / "home", 100, 80_000_000)


def test_four_processes_make_one_transfer(fakehub: FakeHub, tmp_path: Path) -> None:
    folder, home = sharded(tmp_path / "source", 3), tmp_path / "home"
    fakehub.add(REPOSITORY, folder)
    fakehub.fault = Fault("slow", amount=1_500_000)
    processes = [start(fakehub, home, REPOSITORY) for _ in range(4)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * 4, ended
    assert fakehub.sent <= 1.1 * weights_size(folder)
    assert list((home / "cache" / "downloads").iterdir()) == []
    waited = "".join(err for (_, err), _ in ended)
    assert any(f"process {process.pid} is getting this model: waiting for it" in waited for process in processes)
    assert tensors_of(home / "data" / "models" / "org--model-int8.safetensors") == imported(folder, tmp_path)


LOCKS = {
    "no locks": "raise OSError(95, 'not supported')",
    "locks that keep nobody out": "return None",
}


def without_locks(folder: Path, way: str) -> dict[str, str]:
    """Variables of processes on a file system that has no locks, or that takes them and does nothing."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import fcntl\n\ndef flock(file, how):\n    {LOCKS[way]}\n\nfcntl.flock = flock\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


@pytest.mark.parametrize("way", LOCKS)
@pytest.mark.parametrize("killed", [False, True])
def test_four_processes_without_locks(fakehub: FakeHub, three: Path, tmp_path: Path, way: str, killed: bool) -> None:
    """They take turns all the same: one transfer, one whole model; also behind one that was killed."""
    home, variables = tmp_path / "home", without_locks(tmp_path / "site", way)
    fakehub.add(REPOSITORY, three)
    fakehub.fault = Fault("slow", amount=1_500_000)
    if killed:
        process = start(fakehub, home, REPOSITORY, **variables)
        while fakehub.sent < 200_000 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert list(home.rglob(".*.held"))
    processes = [start(fakehub, home, REPOSITORY, **variables) for _ in range(4)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * 4, ended
    assert fakehub.sent <= 1.3 * weights_size(three)
    assert any(f"process {process.pid} is getting this model: waiting for it" in str(ended) for process in processes)
    assert tensors_of(home / "data" / "models" / "org--model-int8.safetensors") == imported(three, tmp_path)
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["org--model-int8.safetensors"]


@pytest.mark.parametrize("way", LOCKS)
def test_waiting_without_locks_has_an_end(fakehub: FakeHub, three: Path, tmp_path: Path, way: str) -> None:
    """`llm clean` leaves what a process without locks is at work on, too."""
    home, variables = tmp_path / "home", without_locks(tmp_path / "site", way)
    fakehub.add(REPOSITORY, three)
    fakehub.fault = Fault("slow", amount=10_000)
    first = start(fakehub, home, REPOSITORY, **variables)
    try:
        while fakehub.sent < 20_000 and first.poll() is None:
            time.sleep(0.01)
        second = start(fakehub, home, REPOSITORY, "--timeout", "0.5", **variables)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 7 and f"process {first.pid} is still at work on it" in err
        before = [path for path in home.rglob("*") if path.is_file()]
        own = {**variables, "LLMCLI_KERNELS": str(tmp_path / "kernels")}  # those of other tests, for other CPUs, are theirs
        clean = start(fakehub, home, command="clean", **own)
        said = clean.communicate(timeout=60)[1]
        assert first.poll() is None and all(path.exists() for path in before)
        assert "nothing to remove" in said, (said, before)
    finally:
        first.kill()
        first.communicate()


def bounds(fakehub: FakeHub, folder: Path, home: Path) -> tuple[int, int]:
    """(peak memory, peak disk), in bytes, of pulling this folder."""
    fakehub.add(REPOSITORY, folder)
    process = start(fakehub, home, REPOSITORY, "-q")
    memory = disk = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            memory = max(memory, int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
        disk = max(disk, used(home))
        time.sleep(0.01)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return memory, disk


def check_bounds(fakehub: FakeHub, tmp_path: Path, folder: Path) -> None:
    """Memory: that of the smallest model, the largest tensor and a constant. Disk: the file, the largest shard and 50 MB."""
    least, _ = bounds(fakehub, random_model.write_folder(tmp_path / "tiny"), tmp_path / "first")
    memory, disk = bounds(fakehub, folder, tmp_path / "second")
    tensors = [safetensors.numpy.load_file(path) for path in folder.glob("*.safetensors")]
    largest = max(array.nbytes for shard in tensors for array in shard.values())
    shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    made = (tmp_path / "second" / "data" / "models" / "org--model-int8.safetensors").stat().st_size
    measured = {"memory": memory, "least": least, "largest tensor": largest, "disk": disk, "made": made, "largest shard": shard}
    print({name: f"{value / 1e6:.0f} MB" for name, value in measured.items()})
    assert memory <= least + largest + 50e6
    assert disk <= made + shard + (50e6 if shard > 50e6 else 2e6)


def test_memory_and_disk_are_bounded(fakehub: FakeHub, tmp_path: Path) -> None:
    check_bounds(fakehub, tmp_path, sharded(tmp_path / "source", 4, config(512, 6, 2048)))


@pytest.mark.long
def test_memory_and_disk_are_bounded_for_a_large_model(fakehub: FakeHub, tmp_path: Path) -> None:
    check_bounds(fakehub, tmp_path, sharded(tmp_path / "source", 3, config(1024, 3, 4096)))


def test_bad_weights_leave_no_model(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    tensors = random_model.tensors()
    tensors["model.norm.weight"][3] = np.inf
    fakehub.add(REPOSITORY, random_model.write_folder(tmp_path / "source", weights=tensors))
    assert '"model.norm.weight"' in pull.error(9, REPOSITORY)
    assert not pull.path().exists()


def test_the_hubs_address_must_be_safe(pull: Puller) -> None:
    for address in ("http://example.com", "ftp://127.0.0.1", "file:///etc", "https://user@example.com", "nonsense"):
        assert "https://" in pull.error(2, REPOSITORY, HF_ENDPOINT=address)
    assert hub.Hub("https://example.com/mirror/").endpoint == "https://example.com/mirror"
