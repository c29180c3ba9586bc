"""The user's own settings: a flag wins over an environment variable, and that over CONFIG/config.toml.

model = "demo"    # the model to use where -m does not say
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from llmcli import places
from llmcli.errors import UsageError

KNOWN = {"model": str}
"""Settings in config.toml and their types."""


def default_model() -> str:
    """The model to use where no flag says: LLMCLI_MODEL, else config.toml's model, else the one that comes along."""
    return os.environ.get("LLMCLI_MODEL") or read().get("model") or "demo"


def read() -> dict[str, Any]:
    """config.toml, checked; empty where there is none. Raises UsageError naming what is wrong with it."""
    path = places.config() / "config.toml"
    found = read_toml(path)
    for name, value in found.items():
        if name not in KNOWN:
            raise UsageError(str(path), f"unknown setting {name!r}", f"llm knows {', '.join(KNOWN)}")
        if type(value) is not KNOWN[name]:
            raise UsageError(str(path), f"{name} is not a {KNOWN[name].__name__}", "Correct it")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; empty where there is none. Raises UsageError for one that cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(str(path), str(error), "Correct or remove it") from error
