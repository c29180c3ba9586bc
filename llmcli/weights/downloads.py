"""What is kept of repositories while models are made of them: CACHE/downloads/ORG--REPO/COMMIT/, each with its listing.

A commit's folder goes when its model is made, unless its sources are to be kept; what a killed process left is used by the
next one that pulls the same commit, and removed by the next one that pulls another.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from llmcli.errors import NotFound
from llmcli.weights import folder
from llmcli.weights.atomic import busy
from llmcli.weights.hub import Listing, RemoteFile
from llmcli.weights.wanted import Wanted


def remove_abandoned(directory: Path) -> None:
    """Removes a commit's downloads unless they are meant to stay or a process is at work with them."""
    with suppress(OSError):
        if not busy(lock(directory)) and not kept(directory):
            shutil.rmtree(directory)


def kept(directory: Path) -> bool:
    """Whether a commit's downloads are meant to stay."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return bool(json.loads((directory / "listing.json").read_bytes())["keep"])
    return False


def lock(directory: Path) -> Path:
    """The lock of a commit's downloads; beside their folders, which come and go."""
    return directory.parent.parent / f".{directory.parent.name}@{directory.name}.lock"


def save(directory: Path, wanted: Wanted, listing: Listing, keep: bool) -> None:
    """Keeps a listing, so that --offline knows what a repository consists of. keep: the downloads are meant to stay."""
    data = {**asdict(listing), "files": [asdict(file) for file in listing.files.values()], "asked": wanted.revision or "main", "keep": keep}
    temporary = directory / "listing.tmp"
    temporary.write_text(json.dumps(data), encoding="utf-8")
    os.replace(temporary, directory / "listing.json")


def saved(home: Path, wanted: Wanted, variable: str) -> Listing:
    """The listing of an earlier, online attempt. Raises NotFound."""
    for path in sorted((home / wanted.repository.replace("/", "--")).glob("*/listing.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(path.read_bytes())
            del data["keep"]
            if (wanted.revision or "main") in (data.pop("asked"), data["commit"]) and data["commit"] == path.parent.name:
                files = {entry["name"]: RemoteFile(**entry) for entry in data.pop("files")}
                return Listing(files=files, **data)
    why = f"nothing of it is here, and {'--offline or ' if variable == 'LLMCLI_OFFLINE' else ''}{variable} forbids the network"
    missing = f"missing: {', '.join(folder.REQUIRED)}, *.safetensors"
    raise NotFound(f"{wanted.repository} is not here", f"{why}; {missing}", "Pull it without --offline, or unset the variable")
