"""The models that are known by a short name: models.toml of the package, and the user's own in CONFIG/models.toml."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import llmcli
from llmcli import places, settings
from llmcli.errors import UsageError
from llmcli.weights.present import QUANTIZATIONS


@dataclass(frozen=True)
class Alias:
    """One table of models.toml; the file says what its fields mean."""

    repository: str = ""
    parameters: int = 0
    licence: str = ""
    context: int = 0
    quantization: str = "int8"
    gated: bool = False
    about: str = ""


def aliases() -> dict[str, Alias]:
    """Every known short name; the user's win. Raises UsageError for a file that is not as it should be."""
    package = Path(llmcli.__file__).parent
    shipped = package / "models.toml"
    # In a checkout the file is at the top; the wheel puts it into the package.
    found = _read(shipped if shipped.is_file() else package.parent / "models.toml")
    return {**found, **_read(places.config() / "models.toml")}


def _read(path: Path) -> dict[str, Alias]:
    found = {}
    kinds = {field.name: type(field.default) for field in fields(Alias)}
    for name, table in settings.read_toml(path).items():
        if not isinstance(table, dict):
            raise UsageError(str(path), f"{name!r} is not a table", f"Write [{name}] and its fields below")
        for field, value in table.items():
            if field not in kinds or type(value) is not kinds[field]:
                raise UsageError(str(path), f"[{name}]: {field} = {value!r} is not possible", f"The fields are {', '.join(kinds)}")
        alias = Alias(**table)
        if alias.quantization not in QUANTIZATIONS:
            raise UsageError(str(path), f"[{name}]: unknown quantization {alias.quantization!r}", f"Use one of {', '.join(QUANTIZATIONS)}")
        found[name] = alias
    return found
