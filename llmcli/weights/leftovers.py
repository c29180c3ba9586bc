"""What interrupted work left in our folders: unfinished downloads, temporary files, locks. Found, and removed on request.

Only entries of our own folders count: of the models and settings what is ours by its name, of the downloads all. Links are
never followed, and what another process holds a lock on is left alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmcli import places
from llmcli.errors import DiskError, LlmError
from llmcli.weights import atomic, folder
from llmcli.weights.safetensors import parse_object

MOST_LISTING = 16 << 20


def unfinished() -> list[Path]:
    """Temporary files, locks, and folders of downloads that hold no whole model and that nobody is working on."""
    found = [path for place in (places.models(), places.config()) for path in atomic.abandoned(place)]
    downloads = places.downloads()
    if downloads.is_symlink() or not downloads.is_dir() or _locked(downloads):
        return found
    return found + [path for path in _entries(downloads) if not (path.is_dir() and _whole(path))]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(where) / name).lstat().st_size for where, _, names in os.walk(path) for name in names)


def delete(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, and download folders that this leaves empty; of a link, the link.
    Raises DiskError."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path} cannot be removed", error.strerror or str(error), "Remove it yourself") from error
    for parent in path.parents:
        if places.downloads() not in parent.parents:
            break
        with suppress(OSError):  # not empty
            parent.rmdir()


def _entries(top: Path) -> Iterator[Path]:
    """The innermost folders below `top`, and files that lie in others."""
    for where, folders, files in os.walk(top):
        if Path(where) == top or any(not (Path(where) / name).is_symlink() for name in folders):
            yield from (Path(where) / name for name in files)
        else:
            yield Path(where)


def _whole(path: Path) -> bool:
    """Whether a folder holds a whole model: sources that were kept on purpose (listing.json is what `llm pull` says of them)."""
    try:
        if (path / "listing.json").exists() and not parse_object(folder.read_file(path / "listing.json", MOST_LISTING)).get("keep"):
            return False
        folder.open_folder(path).checkpoint.close()
    except (LlmError, ValueError):
        return False
    return not any(name.endswith(".part") for name in os.listdir(path))


def _locked(top: Path) -> bool:
    """Whether a process holds a lock on any file below `top`: while something comes in, nothing there is touched."""
    return any(atomic.busy(Path(where) / name) for where, _, names in os.walk(top) for name in names)
