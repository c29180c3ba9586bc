"""A model in the Hub's layout on disk: config.json, safetensors weights (one file or shards), tokenizer files.

Files may be links, as in a hub's cache, but not out of the folder or that cache: a stranger's folder does not say which of
our files are read. Only names that this file knows, or that are plain names in the index, are opened. Weights in pickled formats
are refused: unpickling runs code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from llmcli.errors import AccessDenied, CorruptFile, NotFound, UsageError
from llmcli.formats.format import Bytes
from llmcli.weights.opened import open_regular
from llmcli.weights.safetensors import File, Tensor, parse_object, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_INDEX_BYTES = 64 << 20
MOST_SHARDS = 512
"""A limit below the usual one on open files."""

REQUIRED = {"config.json": 16 << 20, "tokenizer.json": 128 << 20}
"""The files a model cannot do without, and the most bytes they may have."""
OPTIONAL = {
    "tokenizer_config.json": 16 << 20,
    "generation_config.json": 1 << 20,
    "chat_template.jinja": 4 << 20,
    "chat_template.json": 4 << 20,
    "LICENSE": 1 << 20,
    "LICENSE.txt": 1 << 20,
    "LICENSE.md": 1 << 20,
    "NOTICE": 1 << 20,
}
"""Files that go into the packed file where they are there."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Checkpoint:
    """The tensors of one or several safetensors files, under their names."""

    def __init__(self, files: list[File]) -> None:
        self._files = files
        self._file_of: dict[str, File] = {}
        self.tensors: dict[str, Tensor] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise CorruptFile(str(file.path), f"tensor {shown(name)} is also in {self._file_of[name].path.name}")
                self.tensors[name], self._file_of[name] = tensor, file

    def read(self, name: str, start: int, size: int) -> Bytes:
        """Bytes start .. start + size of a tensor, u8 [size]."""
        return self._file_of[name].read(self.tensors[name].start + start, size)

    def close(self) -> None:
        for file in self._files:
            file.close()


@dataclass
class Folder:
    """An open model folder; close it, or use it in a `with`."""

    path: Path
    files: Mapping[str, bytes]
    """Contents of the files of REQUIRED and OPTIONAL that are there."""
    checkpoint: Checkpoint

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.checkpoint.close()


def open_folder(path: Path) -> Folder:
    """Opens the model in a folder. Headers are read and checked, tensors are not read.

    Raises UsageError (not a folder), NotFound (a file is missing), AccessDenied or CorruptFile."""
    try:
        present = {entry.name for entry in os.scandir(path)}
    except FileNotFoundError as error:
        raise NotFound(f"no folder {path}", todo="Give the folder that holds config.json") from error
    except PermissionError as error:
        raise AccessDenied(f"{path} cannot be read", "permission denied") from error
    except NotADirectoryError as error:
        raise UsageError(str(path), "it is not a folder", "Give the folder that holds config.json") from error
    if "config.json" not in present:
        raise NotFound(f"{path} holds no model", "there is no config.json in it", "Give the folder that holds config.json")
    limits = {**REQUIRED, **OPTIONAL}
    _check_links(path, present & {*limits, INDEX})
    names, listed = weight_files(path, present, path / INDEX)
    _check_links(path, names)
    for name in REQUIRED:
        if name not in present:
            raise NotFound(f"{path} has no {name}", todo="Get the whole model again")
    files = {name: read_file(path / name, limits[name]) for name in limits if name in present}
    opened: list[File] = []
    try:
        for name in names:
            opened.append(File(path / name))
        checkpoint = Checkpoint(opened)
        for name in listed - checkpoint.tensors.keys():
            raise CorruptFile(str(path / INDEX), f"tensor {shown(name)} is in no file")
        return Folder(path, files, checkpoint)
    except BaseException:
        for file in opened:
            file.close()
        raise


def _check_links(folder: Path, names: Collection[str]) -> None:
    """Raises CorruptFile where one of the folder's files is a link to a file elsewhere: not in it, nor among the blobs of a hub's cache."""
    home = Path(os.path.realpath(folder))
    places = [home, *([home.parent.with_name("blobs")] if home.parent.name == "snapshots" else [])]
    for name in names:
        target = Path(os.path.realpath(home / name))
        if not any(target.is_relative_to(place) for place in places):
            todo = "Put the file itself in its place, if you trust it"
            raise CorruptFile(str(folder / name), f"it is a link out of the folder, to {target}", todo)


def weight_files(path: Path | str, present: set[str], index: Path | None) -> tuple[list[str], set[str]]:
    """The names of a folder's (or repository's) weight files, and of the tensors that its index lists (none without one).
    present: the names of all files in it; index: where its index is, if it has one. Raises NotFound, CorruptFile."""
    if WEIGHTS in present:
        return [WEIGHTS], set()
    if index is not None and INDEX in present:
        weight_map = _weight_map(index)
        names = sorted(set(weight_map.values()))
        for name in names:
            if not _plain(name):
                raise CorruptFile(str(index), f"{shown(name)} is not the name of a file in the folder")
            if name not in present:
                raise NotFound(f"{path} has no {name}", "the index names it", "Get the whole model again")
        return names, set(weight_map)
    single = [name for name in present if _plain(name)]
    if len(single) == 1:
        return single, set()
    if single:
        raise NotFound(f"{path} has {len(single)} safetensors files and no {INDEX}", todo="Get the whole model again")
    pickled = sorted(name for name in present if name.endswith(PICKLED))
    why = f"{shown(pickled[0])} is in a format that can run code, which llm does not read" if pickled else ""
    raise NotFound(f"no safetensors weights in {path}", why, "Choose a model with safetensors files, or convert it to them")


def _weight_map(path: Path) -> dict[str, str]:
    """The index's tensor name -> file name."""
    try:
        data = parse_object(read_file(path, MOST_INDEX_BYTES).strip())
    except ValueError as error:
        raise CorruptFile(str(path), str(error)) from error
    found = data.get("weight_map")
    if not (isinstance(found, dict) and found and all(isinstance(name, str) for name in found.values())):
        raise CorruptFile(str(path), "it has no weight_map of tensor names to file names")
    if len(set(found.values())) > MOST_SHARDS:
        raise CorruptFile(str(path), f"it names more than {MOST_SHARDS} files")
    return found


def _plain(name: str) -> bool:
    """Whether this is a file name ending in .safetensors and nothing that leads elsewhere."""
    return name.endswith(".safetensors") and not name.startswith(".") and name.isprintable() and not set("/\\") & set(name)


def read_file(path: Path, most: int) -> bytes:
    """A whole file of at most `most` bytes. Raises CorruptFile for a larger one."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise CorruptFile(str(path), f"it has more than {most >> 20} MiB, too many for such a file")
        try:
            return file.read(size)  # room for as much is made at once: not for `most`
        except OSError as error:
            raise CorruptFile(f"{path} cannot be read", error.strerror or str(error)) from error
