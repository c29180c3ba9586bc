"""From a repository of a hub to a packed file: shard by shard, each packed and removed before the next one comes.

What is known when: config.json and the tokenizer first, then the headers of all shards, so that every fault that shows
in them is found before the first byte of a weight is fetched. `fetch.py` brings the shards, `packing.py` takes the weights;
both go on where a killed process stopped, so a plain re-run is all that is ever needed. Where a weight's tensors lie in
two shards, those of the first are kept in a small file of their own (NAME.rest).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmcli import places
from llmcli.errors import CorruptFile, DiskError, HashMismatch, LlmError, ModelFileError, NotFound
from llmcli.formats.format import Bytes
from llmcli.memory import MIB
from llmcli.plan import Weight
from llmcli.weights import downloads, fetch, folder, packed
from llmcli.weights.atomic import turn
from llmcli.weights.convert import Source
from llmcli.weights.hub import Hub, Listing, RemoteFile, offline
from llmcli.weights.packed import Progress
from llmcli.weights.packing import Packing
from llmcli.weights.safetensors import MOST_HEADER_BYTES, File, Tensor, check_header, shown, write_tensors
from llmcli.weights.wanted import Wanted
from llmcli.weights.writer import Contents, Packer

FIRST_BYTES = 32 << 10
"""Enough for most headers."""
Notify = Callable[[str], None]


def present(path: Path, wanted: Wanted, commit: str = "") -> bool:
    """Whether the model is at `path` already: from this repository and, where a commit is known, of that commit."""
    if not path.is_file() or (wanted.revision and not commit and not wanted.revision_is_commit):
        return False
    try:
        with packed.open(path) as file:
            return file.source == wanted.repository and (commit or wanted.revision or file.revision) == file.revision
    except LlmError:
        return False  # damaged: made anew


def tidy(path: Path) -> None:
    """Removes what a process that was killed at its very end left of the downloads and of the journal of `path`."""
    with suppress(LlmError, OSError, ValueError, KeyError, TypeError), packed.open(path) as file:
        path.with_name(f".{path.name}.journal").unlink(missing_ok=True)
        directory = places.downloads() / file.source.replace("/", "--") / file.revision
        downloads.remove_abandoned(directory)


@contextmanager
def repository(wanted: Wanted, path: Path, keep_source: bool, timeout: float | None, notify: Notify) -> Iterator[Repository]:
    """The repository, for making the packed file `path`; other processes that make it, or use its downloads, take turns.

    timeout: seconds to wait for each of them. Raises NotFound, AccessDenied, NetworkError, HashMismatch, DiskError, InUse."""

    def waiting(process: int) -> None:
        notify(f"process {process} is getting this model: waiting for it")

    variable = offline()
    hub = None if variable else Hub.of_environment()
    home = places.downloads()
    listing = hub.listing(wanted.repository, wanted.revision or "main") if hub else downloads.saved(home, wanted, variable)
    if listing.repository != wanted.repository:
        notify(f"{wanted.repository} has moved to {listing.repository}")
    directory = home / listing.repository.replace("/", "--") / listing.commit
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(turn(path.with_name(f".{path.name}.lock"), waiting, timeout))
            stack.enter_context(turn(downloads.lock(directory), waiting, timeout))
            directory.mkdir(parents=True, exist_ok=True)
            for other in directory.parent.iterdir():
                if other != directory:
                    downloads.remove_abandoned(other)
            keep = keep_source or downloads.kept(directory)
            downloads.save(directory, wanted, listing, keep)
            found = Repository(hub, listing, directory, keep)
            try:
                yield found
            except ModelFileError:  # nothing that another attempt could use
                found.remove()
                raise
            finally:
                found.close()
    except OSError as error:
        if error.errno is None:  # nothing of the disk's: a library that could not be loaded meanwhile
            raise
        raise DiskError(f"{error.filename or path} cannot be written", error.strerror or str(error)) from error


class Repository:
    """A commit of a repository while a model is made of it."""

    def __init__(self, hub: Hub | None, listing: Listing, directory: Path, keep: bool) -> None:
        self._hub, self.listing, self._directory, self.keeps = hub, listing, directory, keep
        self._files: dict[str, bytes] = {}
        self._open: dict[str, File] = {}
        self._right: dict[str, Path] = {}
        self.shards: list[RemoteFile] = []
        self._shard_of: dict[str, str] = {}
        self._shard_names: tuple[list[str], set[str]] = ([], set())
        self.tensors: dict[str, Tensor] = {}

    @property
    def config(self) -> bytes:
        """config.json, before anything else is fetched."""
        if self._hub is None or "config.json" not in self.listing.files:
            return self.files["config.json"]  # says all that is missing
        most = folder.REQUIRED["config.json"]
        return folder.read_file(self._small("config.json", most), most)

    @property
    def files(self) -> Mapping[str, bytes]:
        """config.json, tokenizer files and the like; fetched when first asked for."""
        if not self._files:
            self._shard_names = self._weight_files()
            self._check_here()
            for name, most in {**folder.REQUIRED, **folder.OPTIONAL}.items():
                if name in self.listing.files:
                    self._files[name] = folder.read_file(self._small(name, most), most)
        return self._files

    def read_headers(self) -> None:
        """Reads the headers of all shards: `tensors` and `shards` are known then. Raises CorruptFile."""
        names, listed = self._shard_names
        for name in names:
            file = self.listing.files[name]
            for tensor in self._header(file).values():
                if tensor.name in self.tensors:
                    raise CorruptFile(f"{self.listing.repository}: {name}", f"tensor {shown(tensor.name)} is also in another file")
                self.tensors[tensor.name], self._shard_of[tensor.name] = tensor, name
            self.shards.append(file)
        for missing in listed - self.tensors.keys():
            raise CorruptFile(f"{self.listing.repository}: {folder.INDEX}", f"tensor {shown(missing)} is in no file")

    def job(
        self,
        path: Path,
        weights: Mapping[str, Weight],
        sources: Mapping[str, Source],
        quantization: str,
        metadata: Mapping[str, str],
        files: Mapping[str, bytes],
        ignored: tuple[str, ...],
        pack: Packer | None = None,
    ) -> Job:
        """What is left to do for the packed file `path`. Arguments and errors as writer.write_model's."""
        return Job(self, Packing(path, Contents(weights, sources, self.tensors, quantization, metadata, files, ignored, pack)))

    def read(self, name: str, start: int, size: int) -> Bytes:
        """Bytes of a tensor whose shard is open (convert.Reader)."""
        file = self._open[self._shard_of[name]]
        return file.read(file.tensors[name].start + start, size)

    def has(self, names: Collection[str]) -> bool:
        """Whether all these tensors can be read now."""
        return all(self._shard_of[n] in self._open and n in self._open[self._shard_of[n]].tensors for n in names)

    def take(self, shard: RemoteFile, needed: Set[str], received: fetch.Received) -> bool:
        """Opens a shard, fetched if need be, or what an earlier process kept of it. True for a whole shard of ours."""
        rest = self._rest(shard)
        if rest.exists():
            with suppress(LlmError):
                file = File(rest)
                if needed <= file.tensors.keys():
                    self._open[shard.name] = file
                    return False
                file.close()
        path = self._right.get(shard.name) or fetch.obtain(self._hub, self.listing, shard, self._directory, received)
        file = self._open[shard.name] = File(path)
        if file.tensors != {n: t for n, t in self.tensors.items() if self._shard_of[n] == shard.name}:
            self._header_path(shard).unlink(missing_ok=True)
            raise HashMismatch(f"{self.listing.repository}: {shard.name}", "its header is not the one that came first", "Pull it again")
        return path.parent == self._directory

    def keep(self, shard: RemoteFile, names: Collection[str]) -> None:
        """Removes a shard but for these tensors."""
        file = self._open.pop(shard.name)
        if names:
            write_tensors(self._rest(shard), file, names)
            self._open[shard.name] = File(self._rest(shard))
        file.path.unlink()
        file.close()

    def needed(self, shard: RemoteFile, tensors: Collection[str]) -> set[str]:
        """Those of the tensors that are in a shard."""
        return {name for name in tensors if self._shard_of[name] == shard.name}

    def missing(self, shard: RemoteFile) -> int:
        """Bytes of a shard that are not on this machine."""
        return 0 if fetch.here(self.listing, shard, self._directory) else shard.size - fetch.held(shard, self._directory)

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def remove(self) -> None:
        """Removes what was downloaded, unless it is to be kept."""
        self.close()
        if not self.keeps:
            shutil.rmtree(self._directory, ignore_errors=True)
        with suppress(OSError):
            self._directory.parent.rmdir()

    def free(self) -> int:
        return shutil.disk_usage(self._directory).free

    def device(self) -> int:
        return self._directory.stat().st_dev

    def _rest(self, shard: RemoteFile) -> Path:
        return self._directory / f"{shard.name}.rest"

    def _header_path(self, shard: RemoteFile) -> Path:
        return self._directory / f"{shard.name}.header"

    def _small(self, name: str, most: int) -> Path:
        file = self.listing.files[name]
        if file.size > most:
            raise CorruptFile(f"{self.listing.repository}: {name}", f"it has more than {most >> 20} MiB, too many for such a file")
        return fetch.obtain(self._hub, self.listing, file, self._directory, lambda count: None)

    def _weight_files(self) -> tuple[list[str], set[str]]:
        files = self.listing.files
        for name in folder.REQUIRED:
            if name not in files:
                raise NotFound(f"{self.listing.repository} has no {name}", "llm needs it", "Choose a repository of a language model")
        index = self._small(folder.INDEX, folder.MOST_INDEX_BYTES) if folder.INDEX in files and folder.WEIGHTS not in files else None
        return folder.weight_files(self.listing.repository, set(files), index)

    def _check_here(self) -> None:
        """Offline: raises NotFound with all that is missing."""
        if self._hub is not None:
            return
        names = [*self._shard_names[0], *(name for name in (*folder.REQUIRED, *folder.OPTIONAL) if name in self.listing.files)]
        missing = [n for n in names if not fetch.here(self.listing, self.listing.files[n], self._directory)]
        if missing:
            raise NotFound(f"{self.listing.repository} is not all here", f"missing: {', '.join(missing)}", "Pull it without --offline")

    def _header(self, shard: RemoteFile) -> dict[str, Tensor]:
        """A shard's tensors: from the shard where it is here, else from its first bytes, which are kept for the next attempt."""
        local = fetch.here(self.listing, shard, self._directory)
        if local is not None and fetch.is_right(local, shard):
            self._right[shard.name] = local
            with File(local) as file:
                return file.tensors
        kept, label = self._header_path(shard), f"{self.listing.repository}: {shard.name}"
        with suppress(OSError, CorruptFile):
            raw = kept.read_bytes()
            return check_header(raw, shard.size - 8 - len(raw), label)[1]
        if self._hub is None:
            raise NotFound(f"{label} is damaged", "the network is not to be used", "Pull it without --offline")
        raw = fetch.beginning(self._hub, self.listing, shard, min(shard.size, FIRST_BYTES))
        length = int.from_bytes(raw[:8], "little")
        if len(raw) < 8 or not 2 <= length <= min(MOST_HEADER_BYTES, shard.size - 8):
            raise CorruptFile(label, "it is not a safetensors file")
        if len(raw) < 8 + length:
            raw = fetch.beginning(self._hub, self.listing, shard, 8 + length)
        header = raw[8 : 8 + length]
        tensors = check_header(header, shard.size - 8 - length, label)[1]
        temporary = kept.with_suffix(".tmp")
        temporary.write_bytes(header)
        os.replace(temporary, kept)
        return tensors


@dataclass
class Job:
    """The making of a packed file: look at its numbers, then run it."""

    repository: Repository
    packing: Packing

    @property
    def download(self) -> int:
        """Bytes of weights to fetch."""
        return sum(self.repository.missing(shard) for shard, _ in self._left())

    def check_disk(self) -> tuple[int, int]:
        """Bytes of disk that are needed at most, and those that are free. Raises DiskError where that is too little."""
        left = self.packing.missing
        largest = max((self.repository.missing(shard) for shard, _ in self._left()), default=0)
        path = self.packing.path
        free = shutil.disk_usage(path.parent).free
        rooms = [(path, left + largest, free)]
        if self.repository.device() != path.parent.stat().st_dev:
            rooms = [(path, left, free), (places.downloads(), largest, self.repository.free())]
        for place, needed, room in rooms:
            if needed > room:
                why = f"it needs {needed / MIB:,.1f} MiB and the disk has {room / MIB:,.1f} MiB free"
                raise DiskError(f"no room for {self.repository.listing.repository} at {place.parent}", why)
        return left + largest, free

    def run(self, progress: Progress) -> None:
        """Fetches and packs what is left; then the file is at its place. progress: bytes of all shards."""
        repository, packing = self.repository, self.packing
        total = sum(shard.size for shard in repository.shards)
        done = total - self.download

        def received(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        received(0)
        for shard in repository.shards:
            needed = repository.needed(shard, self._tensors_left())
            if not needed:
                continue
            ours = repository.take(shard, needed, received)
            for name in packing.left():
                if repository.has(packing.contents.sources[name].names):
                    packing.write(name, repository, lambda count: received(0))
            if ours and not repository.keeps:
                packing.sync()
                repository.keep(shard, repository.needed(shard, self._tensors_left()))
        packing.finish()
        repository.remove()

    def _tensors_left(self) -> set[str]:
        return {tensor for name in self.packing.left() for tensor in self.packing.contents.sources[name].names}

    def _left(self) -> Iterator[tuple[RemoteFile, set[str]]]:
        """The shards that are still needed, and for which tensors."""
        tensors = self._tensors_left()
        for shard in self.repository.shards:
            needed = self.repository.needed(shard, tensors)
            if needed and not self.repository._rest(shard).exists():
                yield shard, needed
