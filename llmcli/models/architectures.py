"""Which architecture a config.json asks for. The files in `arch/` are the list: nothing is registered anywhere.

An architecture file is data and one function (see `Architecture`). To add a model family, add a file; derive it
from another's with `dataclasses.replace` where it is one with a difference.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Protocol, cast

from llmcli.errors import UnsupportedModel
from llmcli.models import arch
from llmcli.models.config import Config
from llmcli.models.names import Source
from llmcli.models.spec import Spec, checked


class Architecture(Protocol):
    """What each file in `arch/` defines."""

    TYPES: Mapping[str, str]
    """config.json's model_type -> the class it names under `architectures`."""
    NAMES: Mapping[str, Source]
    """Our weight names -> how they are made from the checkpoint's tensors (see names.py)."""
    PREFIX: str
    """How the checkpoint's tensor names begin; a checkpoint may leave it off ('' where nothing may be left off)."""
    IGNORED: tuple[str, ...]
    """Endings of tensor names that hold no weights (masks, frequencies)."""
    TINY: Mapping[str, dict[str, Any]]
    """Variant -> a tiny config.json: what the tests compare with the original implementation."""

    def spec(self, cfg: Config) -> Spec:
        """Reads a config.json of one of TYPES."""
        ...


@cache
def every() -> tuple[Architecture, ...]:
    """All architecture files, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(arch.__path__))
    return tuple(cast(Architecture, importlib.import_module(f"{arch.__name__}.{name}")) for name in names)


def supported() -> list[str]:
    """The class names of all architectures that we run."""
    return sorted(name for module in every() for name in module.TYPES.values())


def find(config: Mapping[str, Any]) -> Architecture:
    """The architecture file for a config.json. Raises UnsupportedModel, with the list of supported ones."""
    kind, classes = config.get("model_type"), config.get("architectures") or []
    classes = classes if isinstance(classes, list) else [classes]
    for module in every():
        for known, name in module.TYPES.items():
            # Letters' case differs between authors: MPTForCausalLM, MptForCausalLM.
            named = any(isinstance(word, str) and word.casefold() == name.casefold() for word in classes)
            if kind in (known, None) and (named or (kind and not classes)):
                return module
    what = f"unsupported architecture {', '.join(str(name)[:60] for name in classes[:3]) or str(kind)[:60]}"
    raise UnsupportedModel(what, f"llm runs {', '.join(supported())}", "Use another model")


def describe(config: Mapping[str, Any], allow: Collection[str] = ()) -> tuple[Spec, Architecture]:
    """The spec of the model that a config.json describes, and its architecture file. allow: fields that may be there
    although we do not know them. Raises UnsupportedModel or CorruptFile."""
    module = find(config)
    cfg = Config(config)
    cfg.expect("is_encoder_decoder", False)
    cfg.expect("add_cross_attention", False)
    spec = module.spec(cfg)
    cfg.finish(allow)
    return checked(spec), module
