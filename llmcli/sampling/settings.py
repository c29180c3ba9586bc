"""What a user may ask of sampling: one record, with the defaults of the field's command lines, and what each value may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from llmcli.errors import UsageError

LAST = 64
"""Penalties look at this many latest tokens, of the prompt and of the answer."""

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}
"""Setting -> (least, largest)."""
COUNTS: dict[str, tuple[int, int]] = {"max_tokens": (0, 10**8), "top_k": (0, 2**31), "seed": (0, 2**64 - 1)}
"""The same for whole numbers."""
LARGEST_BIAS = 1e6
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """max_tokens None: to the end of the text or of the context. top_k 0, top_p 1, min_p 0 and the penalties'
    defaults switch those filters off; temperature 0 always takes the likeliest token.

    Raises UsageError for a value out of its range."""

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in NUMBERS:
            if reason := check_number(getattr(self, name), *NUMBERS[name]):
                raise UsageError(name, reason, "Change it")
        for name in COUNTS:
            value = getattr(self, name)
            if (reason := check_count(value, *COUNTS[name])) and not (name == "max_tokens" and value is None):
                raise UsageError(name, reason, "Change it")
        for token, bias in self.logit_bias.items():
            if reason := check_bias(token, bias):
                raise UsageError("logit_bias", reason, "Change it")
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise UsageError("stop", "it is not a sequence of texts", 'Write stop=("text",)')

    @property
    def penalised(self) -> bool:
        """True where a penalty is switched on."""
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def changed(self, overrides: Mapping[str, Any]) -> Settings:
        """These settings with the overrides that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in overrides.items() if value is not None})


def check_number(value: object, low: float, high: float) -> str:
    """'' for a number from low to high, else what is wrong."""
    fine = isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high
    return "" if fine else f"{value!r} is not a number from {low:g} to {high:g}"


def check_count(value: object, low: int, high: int) -> str:
    """'' for a whole number from low to high, else what is wrong."""
    fine = isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high
    return "" if fine else f"{value!r} is not a whole number from {low:,} to {high:,}"


def check_bias(token: object, bias: object) -> str:
    """'' for a token's id and what may be added to its logit, else what is wrong."""
    if reason := check_count(token, 0, LARGEST_ID):
        return f"the id of a token: {reason}"
    if isinstance(bias, Real) and float(bias) == -math.inf:
        return ""
    return check_number(bias, -LARGEST_BIAS, LARGEST_BIAS)


def from_generation_config(config: Mapping[str, Any]) -> Settings:
    """The defaults with what a model's generation_config.json says of sampling; values of a wrong type or out of range
    are left out."""
    chosen: dict[str, Any] = {}
    if config.get("do_sample") is False:
        chosen["temperature"] = 0.0
    names = {"temperature": "temperature", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}
    for theirs, ours in names.items():
        value = config.get(theirs)
        if not check_number(value, *NUMBERS[ours]):
            chosen.setdefault(ours, float(value))  # type: ignore[arg-type]
    if not check_count(config.get("top_k"), *COUNTS["top_k"]):
        chosen["top_k"] = config["top_k"]
    return Settings(**chosen)
