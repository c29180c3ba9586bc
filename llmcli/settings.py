"""The user's own settings: a flag wins over an environment variable, and that over CONFIG/config.toml.

model = "demo"    # the model to use where -m does not say
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from llmcli import places
from llmcli.errors import UsageError

VARIABLE = "LLMCLI_MODEL"
KNOWN = {"model": str}
"""Settings in config.toml and their types."""


def default_model() -> str:
    """The model to use where no flag says: LLMCLI_MODEL, else config.toml's model, else the one that comes along."""
    return default_and_origin()[0]


def default_and_origin() -> tuple[str, str]:
    """The default model, and what says so: a variable's name, the path of config.toml, or '' for neither."""
    if found := os.environ.get(VARIABLE):
        return found, VARIABLE
    if found := read().get("model"):
        return found, str(path())
    return "demo", ""


def path() -> Path:
    return places.config() / "config.toml"


def read() -> dict[str, Any]:
    """config.toml, checked; empty where there is none. Raises UsageError naming what is wrong with it."""
    found = read_toml(path())
    for name, value in found.items():
        if name not in KNOWN:
            raise UsageError(str(path()), f"unknown setting {name!r}", f"llm knows {', '.join(KNOWN)}")
        if type(value) is not KNOWN[name]:
            raise UsageError(str(path()), f"{name} is not a {KNOWN[name].__name__}", "Correct it")
    return found


def with_model(text: str, model: str) -> str:
    """The text of a config.toml with another model; all else, comments too, stays as it is. Raises UsageError where that fails."""
    value = json.dumps(model, ensure_ascii=False)  # TOML's strings are written like JSON's
    line = re.compile(r"""^([ \t]*model[ \t]*=[ \t]*)("[^"\n]*"|'[^'\n]*')""", re.MULTILINE)
    changed, count = line.subn(lambda found: found[1] + value, text, count=1)
    if not count:
        changed = f"model = {value}\n{text}"
    try:
        if tomllib.loads(changed) == {**tomllib.loads(text), "model": model}:
            return changed
    except ValueError:
        pass
    raise UsageError(str(path()), "it is written in a way that llm cannot change", f"Write model = {value} into it")


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file; empty where there is none. Raises UsageError for one that cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(str(file), why, "Correct or remove it") from error
