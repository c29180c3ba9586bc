"""The models on this machine: packed files in the models folder, called NAME-QUANTIZATION.safetensors, and the demo.

A reference is a path to a packed file (an existing one wins), or a name with or without :int4, :int8 or :none. The
file's name is what counts, so nothing but a header is ever read here, and damaged files spoil no listing. A name may
be "organisation/name"; its file has -- in place of the slash, which no part of a name may hold.
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from llmcli import places, settings
from llmcli.errors import DiskError, LlmError, NotFound, UsageError
from llmcli.weights import packed
from llmcli.weights.aliases import aliases
from llmcli.weights.present import QUANTIZATIONS, SUFFIX
from llmcli.weights.safetensors import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
"""A repository on a hub."""


@dataclass(frozen=True)
class Model:
    """A file in the models folder (or the demo). size: bytes; date: when it was made (YYYY-MM-DD); source: what it was
    made from; damaged: why it cannot be used, or ''."""

    name: str
    quantization: str
    size: int
    date: str
    source: str
    path: Path
    damaged: str = ""


def checked_name(name: str) -> str:
    """The name itself. Raises UsageError for one that cannot be a model's."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name:
        raise UsageError(f"{shown(name)} cannot be a model's name", "names are letters, digits, - . _ and at most one /", "Use --name")
    return name


def path_of(name: str, quantization: str) -> Path:
    """Where a model of this name belongs. Raises UsageError for a name that is not possible."""
    return places.models() / _file_name(checked_name(name), quantization)


def find(reference: str | None) -> Path:
    """The packed file that a reference means (None: the default model). Raises NotFound with near matches, UsageError for a folder."""
    if reference is None:
        reference = settings.default_model()
    if os.path.isfile(reference):
        return Path(reference)
    name, quantization = split(reference)
    found = quantizations(name)
    if quantization in found:
        return found[quantization]
    if found and quantization:
        raise NotFound(f"no {shown(reference)}", f"here is {', '.join(f'{name}:{q}' for q in found)}")
    if found:
        alias = aliases().get(name) if len(found) > 1 else None
        wanted = [alias.quantization] if alias else []
        return next(found[q] for q in (*wanted, "int8", "int4", "none") if q in found)
    if os.path.isdir(reference):
        raise UsageError(f"{shown(reference)} is a folder", "", f"llm import {reference} makes a model of it")
    if reference.startswith((".", "/", "~")) or reference.endswith(SUFFIX):
        raise NotFound(f"no file {shown(reference)}")
    known = sorted({model.name for model in every() if not model.damaged} | aliases().keys())
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    todo = f"Did you mean {' or '.join(near)}? {NotFound.todo}" if near else NotFound.todo
    if name in aliases() or REPOSITORY.fullmatch(name.partition("@")[0]):
        todo = f"llm pull {reference} gets it; {NotFound.todo}"
    raise NotFound(f"no model {shown(reference)}", todo=todo)


def every() -> list[Model]:
    """All models, the demo first, then by name and quantization. Files that are not models are left out, and files
    that look like one but cannot be used are marked as damaged."""
    found = []
    for folder in (places.demo(), places.models()):
        try:
            paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX) and not path.name.startswith("."))
        except OSError:
            continue
        found += [record(path) for path in paths]
    return found


def matching(reference: str) -> dict[str, Path]:
    """Label -> file of everything that a reference means: a path, one quantization, or all of a name. Raises as `find` does."""
    first = find(reference)
    name, quantization = split(reference)
    if os.path.isfile(reference) or quantization:
        return {reference: first}
    return {f"{name}:{q}": path for q, path in quantizations(name).items()}


def name_of(reference: str) -> str:
    """A reference without its quantization."""
    return split(reference)[0]


def remove(reference: str) -> list[Path]:
    """Removes a model, in all its quantizations unless the reference names one; returns the files that are gone.

    Only entries of the models folder are removed: a link there goes, what it leads to stays. Raises NotFound,
    UsageError (the demo, a path), DiskError."""
    name, quantization = split(reference)
    paths = [path for q in QUANTIZATIONS if quantization in ("", q) and os.path.lexists(path := places.models() / _file_name(name, q))]
    if not paths:
        if os.path.isfile(reference):
            raise UsageError(f"{shown(reference)} is a path", "llm rm removes models by name", "Remove the file yourself")
        if find(reference).parent == places.demo():
            raise UsageError(f"{name} comes with llm", "it cannot be removed", "llm list shows the others")
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise DiskError(f"{path} cannot be removed", error.strerror or str(error), "Remove it yourself") from error
    return paths


def reference_of(path: Path) -> str:
    """The name under which a file is found, without its quantization; '' for one that is not in our folders."""
    return _said(path)[0] if path.parent in (places.models(), places.demo()) else ""


def split(reference: str) -> tuple[str, str]:
    """The name and the quantization ('' where it says none) of a reference."""
    name, colon, quantization = reference.rpartition(":")
    return (name, quantization) if colon and quantization in QUANTIZATIONS else (reference, "")


def _file_name(name: str, quantization: str) -> str:
    return f"{name.replace('/', '--')}-{quantization}{SUFFIX}"


def quantizations(name: str) -> dict[str, Path]:
    """quantization -> file of the models of this name; the models folder's before the demo's."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name:
        return {}
    found = {}
    for folder in (places.demo(), places.models()):
        for quantization in QUANTIZATIONS:
            path = folder / _file_name(name, quantization)
            if path.is_file():
                found[quantization] = path
    return found


def record(path: Path) -> Model:
    """What a file in one of our folders is."""
    name, quantization = _said(path)
    try:
        status = path.stat()
    except OSError as error:
        return Model(name, quantization, 0, "", "", path, error.strerror or str(error))
    size, date = status.st_size, datetime.date.fromtimestamp(status.st_mtime).isoformat()
    if not quantization or not stat.S_ISREG(status.st_mode):
        return Model(path.name.removesuffix(SUFFIX), "", size, date, "", path, f"it is not called NAME-QUANTIZATION{SUFFIX}, or not a file")
    try:
        with packed.open(path) as model:
            other = "" if model.quantization == quantization else f"it is {model.quantization}, and not what its name says"
            return Model(name, quantization, size, model.created, model.source, path, other)
    except LlmError as error:
        return Model(name, quantization, size, date, "", path, error.why or error.what)


def _said(path: Path) -> tuple[str, str]:
    """The name and the quantization that a file's name says; all of it and '' where it says none."""
    whole = path.name.removesuffix(SUFFIX)
    name, _, quantization = whole.rpartition("-")
    return (name.replace("--", "/"), quantization) if quantization in QUANTIZATIONS else (whole, "")
