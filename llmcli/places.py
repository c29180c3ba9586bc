"""Where files live on this machine, and which environment variables say otherwise. Touches nothing on disk.

    models     DATA/models/NAME-int4.safetensors
    history    DATA/chat/history.jsonl
    downloads  CACHE/downloads/REPO/COMMIT/*.part
    kernels    CACHE/kernels/          (LLMCLI_KERNELS)
    settings   CONFIG/config.toml, CONFIG/models.toml
DATA, CACHE and CONFIG are the platform's own (XDG on Linux); LLMCLI_HOME puts all three into one folder.
"""

from __future__ import annotations

import os
from pathlib import Path


def _base(kind: str) -> Path:
    home = os.environ.get("LLMCLI_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    found = {"data": platformdirs.user_data_dir, "cache": platformdirs.user_cache_dir, "config": platformdirs.user_config_dir}[kind]
    return Path(found("llmcli", appauthor=False))


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


def demo() -> Path:
    """The folder of the models that come with the package."""
    return Path(__file__).parent / "demo"
