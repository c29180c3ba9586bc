"""The settings of a chat that /set changes: the flags of the command line, by the same names and with the same ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

import typer

from llmcli.cli.options import Answering, Sampling
from llmcli.errors import UsageError

FIELDS = (*(field.name for field in dataclasses.fields(Sampling)), "max_tokens", "stop", "seed", "probs")


@dataclass(frozen=True)
class Setting:
    field: str
    names: tuple[str, ...]
    """Its flags without their dashes."""
    parse: Callable[[str], Any]
    many: bool
    """A list of values."""

    def value(self, words: Sequence[str]) -> Any:
        """Raises UsageError where the flag would."""
        if not self.many and len(words) != 1:
            raise UsageError(self.names[0], f"it takes one value, not {len(words)}", "See /set")
        try:
            values = [self.parse(word) for word in words]
        except typer.BadParameter as error:
            raise UsageError(self.names[0], error.message, "") from error
        return values if self.many else values[0]


def _settings() -> list[Setting]:
    hints, found = get_type_hints(Answering, include_extras=True), []
    for name in FIELDS:
        kind, info = get_args(hints[name])
        many = any(get_origin(part) is list for part in get_args(kind))
        decls = (info.default, *info.param_decls)  # inside Annotated, Typer takes its first flag for a default
        flags = sorted((flag.lstrip("-") for flag in decls), key=lambda flag: len(flag) == 1)
        found.append(Setting(name, tuple(flags), info.parser or str, many))
    return found


SETTINGS = _settings()


def change(options: Any, name: str, words: Sequence[str]) -> Any:
    """The options with another value of the setting that is called `name`; the word `default` takes it back. Raises UsageError."""
    for setting in SETTINGS:
        if name.lstrip("-") in setting.names:
            break
    else:
        raise UsageError(f"there is no setting {name!r}", todo=f"There is {', '.join(setting.names[0] for setting in SETTINGS)}")
    if list(words) == ["default"]:
        value = type(options).__dataclass_fields__[setting.field].default
    else:
        value = setting.value(words)
    return dataclasses.replace(options, **{setting.field: value})


def chosen(options: Any) -> dict[str, Any]:
    """Field -> value of all settings that somebody chose, as JSON has it."""
    found = {}
    for setting in SETTINGS:
        value = getattr(options, setting.field)
        if value != type(options).__dataclass_fields__[setting.field].default:
            found[setting.field] = [f"{item.token}={item.value}" for item in value] if setting.field == "logit_bias" else value
    return found


def restored(options: Any, saved: Mapping[str, Any]) -> Any:
    """The options with what `chosen` found. Raises UsageError for what is not in range or unknown."""
    fields = {setting.field: setting for setting in SETTINGS}
    for name, value in saved.items():
        if name not in fields:
            raise UsageError(f"there is no setting {name!r}", todo="")
        words = [str(item) for item in (value if isinstance(value, list) else [value])]
        options = dataclasses.replace(options, **{name: fields[name].value(words)})
    return options
