"""Where files live on this machine, and which environment variables say otherwise. Touches nothing on disk.

    models     DATA/models/NAME-int4.safetensors
    history    DATA/chat/history.jsonl
    downloads  CACHE/downloads/REPO/COMMIT/*.part
    kernels    CACHE/kernels/          (LLMCLI_KERNELS)
    settings   CONFIG/config.toml, CONFIG/models.toml
DATA, CACHE and CONFIG are the platform's own (XDG on Linux); LLMCLI_HOME puts all three into one folder. A user who has no home,
as in some containers, has them in a folder that is not there, and never in the current one.
"""

from __future__ import annotations

import os
from pathlib import Path

NOWHERE = Path("/nonexistent")
"""The home of users without one, as Debian calls it."""


def _base(kind: str) -> Path:
    home = os.environ.get("LLMCLI_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    found = {"data": platformdirs.user_data_dir, "cache": platformdirs.user_cache_dir, "config": platformdirs.user_config_dir}[kind]
    try:
        path = Path(found("llmcli", appauthor=False))
    except RuntimeError:  # what it says of such users; older versions say "~"
        return NOWHERE / kind
    return path if path.is_absolute() else NOWHERE / kind


def models() -> Path:
    return _base("data") / "models"


def history() -> Path:
    """What was typed into chats, in a folder of its own, which is private."""
    return _base("data") / "chat" / "history.jsonl"


def downloads() -> Path:
    return _base("cache") / "downloads"


def kernels() -> Path:
    override = os.environ.get("LLMCLI_KERNELS")
    return Path(override) if override else _base("cache") / "kernels"


def config() -> Path:
    return _base("config")


def expanded(path: str) -> Path:
    """A path with ~ for the user's home, or ~NAME for another's; one that is not known stays as it is written."""
    found = Path(os.path.expanduser(path))
    return NOWHERE.joinpath(*found.parts[1:]) if found.parts[:1] == ("~",) else found


def demo() -> Path:
    """The folder of the models that come with the package."""
    return Path(__file__).parent / "demo"
