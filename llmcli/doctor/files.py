"""What llm keeps on this machine: its folders, kernels and models, who may write there, and the room that is left."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from llmcli import places, settings
from llmcli.doctor.default import default
from llmcli.doctor.rows import Row, size
from llmcli.errors import LlmError, NotFound

LITTLE = 2**30
"""Bytes: less free space is worth a note."""
OTHER = "Set LLMCLI_HOME to a folder of yours"


def folders() -> Iterator[Row]:
    """A row a folder: where it is, what it takes, and whether we can write there and others cannot."""
    where = {"models": places.models(), "downloads": places.downloads(), "kernels": places.kernels(), "settings": places.config()}
    for what, path in where.items():
        yield _folder(f"{what} in {path}", path)


def _folder(text: str, path: Path) -> Row:
    try:
        found = path.stat()
    except FileNotFoundError:
        above = next(folder for folder in path.parents if folder.exists())
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            return Row("folder", "ok", f"{text} (made when it is needed)")
        return Row("folder", "note", f"{text}: it cannot be made, because {above} cannot be written to", OTHER)
    except OSError as error:
        return Row("folder", "note", f"{text}: {error.strerror}", OTHER)
    if not stat.S_ISDIR(found.st_mode):
        return Row("folder", "note", f"{text}: it is not a folder", OTHER)
    if found.st_uid not in (0, os.geteuid()):
        return Row("folder", "note", f"{text}: it belongs to another user", OTHER)
    if found.st_mode & 0o022:
        return Row("folder", "note", f"{text}: others can write there and so change what llm reads", f"chmod go-w {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        return Row("folder", "note", f"{text}: it cannot be written to", f"chmod u+wx {path}")
    return Row("folder", "ok", f"{text}: {size(_size(path))}")


def _size(folder: Path) -> int:
    """Bytes of all files below."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def space() -> Iterator[Row]:
    """Free space where models and kernels go."""
    free = {}
    for what, path in (("models", places.models()), ("kernels", places.kernels())):
        above = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free[what] = shutil.disk_usage(above).free
    text = ", ".join(f"{size(count)} free for {what}" for what, count in free.items())
    if min(free.values()) < LITTLE:
        yield Row("disk", "note", text, "llm clean and llm rm make room; LLMCLI_HOME chooses another disk")
    else:
        yield Row("disk", "ok", text)


def kernels() -> Iterator[Row]:
    """How many of the kernels that the default model needs are compiled and kept."""
    from llmcli.backends.cpu import objects

    try:
        needed = default().kernels
    except LlmError:  # the check of the models says why
        return
    kept, trouble = objects.count_kept(needed)
    text = f"{kept} of the {len(needed)} that {default().name} needs are compiled and kept"
    if trouble:
        fix = f"chmod go-w {places.kernels()}, or set LLMCLI_KERNELS to a folder of yours"
        yield Row("kernels", "note", f"compiled again at every run: {trouble}", fix)
    elif kept < len(needed):
        yield Row("kernels", "note", f"{text}; the next run compiles the rest first, which takes some seconds", "llm warmup")
    else:
        yield Row("kernels", "ok", text)


def models() -> Iterator[Row]:
    """How many there are, which is the default, and which are damaged."""
    from llmcli.weights import store

    found = store.every()
    whole = [model for model in found if not model.damaged]
    yield Row("models", "ok", f"{len(whole)} here, {size(sum(model.size for model in found))}")
    for model in found:
        if model.damaged:
            fix = f"llm rm {model.name}:{model.quantization}, then get it again" if model.quantization else "Remove or rename it"
            yield Row("models", "note", f"{model.path} is damaged: {model.damaged}", fix)
    name, origin = settings.default_and_origin()
    try:
        yield Row("default", "ok", f"{default().name}, chosen by {origin}" if origin else f"{default().name}, which comes along")
    except NotFound:
        fix = f"unset {origin}" if origin == settings.VARIABLE else "llm use demo"
        yield Row("default", "problem", f"{name}, chosen by {origin or 'nobody'}, is not here", f"{fix}, or llm pull {name}")
    except LlmError as error:
        yield Row("default", "problem", f"{name}: {error.why or error.what}", error.todo)


def texts() -> Iterator[Row]:
    """Whether config.toml and models.toml can be read."""
    from llmcli.weights.aliases import aliases

    settings.read()  # without it no command works
    there = [path.name for path in (settings.path(), places.config() / "models.toml") if path.exists()]
    try:
        aliases()
        yield Row("settings", "ok", f"{' and '.join(there)} in {places.config()}" if there else "none of your own")
    except LlmError as error:
        yield Row("settings", "note", f"{error.what}: {error.why}; models have no short names", error.todo)
