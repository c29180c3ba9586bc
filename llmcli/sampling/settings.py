"""What a user may ask of sampling: one record, with the defaults of the field's command lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAST = 64
"""Penalties look at this many latest tokens, of the prompt and of the answer."""


@dataclass(frozen=True)
class Settings:
    """max_tokens None: to the end of the text or of the context. top_k 0, top_p 1, min_p 0 and the penalties'
    defaults switch those filters off; temperature 0 always takes the likeliest token."""

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

    @property
    def penalised(self) -> bool:
        """True where a penalty is switched on."""
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def changed(self, overrides: Mapping[str, Any]) -> Settings:
        """These settings with the overrides that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in overrides.items() if value is not None})


def from_generation_config(config: Mapping[str, Any]) -> Settings:
    """The defaults with what a model's generation_config.json says of sampling; values of a wrong type are left out."""
    chosen: dict[str, Any] = {}
    if config.get("do_sample") is False:
        chosen["temperature"] = 0.0
    names = {"temperature": "temperature", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}
    for theirs, ours in names.items():
        value = config.get(theirs)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
            chosen.setdefault(ours, float(value))
    if not chosen.get("repeat_penalty", 1.0):  # it divides
        del chosen["repeat_penalty"]
    top_k = config.get("top_k")
    if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 0:
        chosen["top_k"] = top_k
    return Settings(**chosen)
