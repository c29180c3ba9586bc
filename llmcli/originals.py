"""A model as it came, opened for packing: a folder in the Hub's layout, or a GGUF file.

    config.json -(models/architectures)-> spec -(models/decoder)-> plan -(models/names)-> sources of its weights
A GGUF file's metadata are first written as a config.json and a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmcli.engine import DEFAULT_CONTEXT
from llmcli.models import architectures, config, decoder, metadata, names
from llmcli.models.names import Named
from llmcli.models.spec import Spec
from llmcli.plan import Plan
from llmcli.text import gguf as vocabulary
from llmcli.text.compact import compact
from llmcli.weights import folder, gguf
from llmcli.weights.convert import Reader, Source


@dataclass(frozen=True)
class Original:
    """What a packed file is made of: arguments of writer.write_model."""

    label: str
    """The path, or what else it is."""
    spec: Spec
    plan: Plan
    sources: Mapping[str, Source]
    reader: Reader
    files: Mapping[str, bytes]
    """config.json, tokenizer.json and what else goes along, as a packed file has them."""
    ignored: tuple[str, ...]
    """Endings of the names of tensors that no weight needs."""


@contextmanager
def opened(path: Path, allow: Collection[str] = ()) -> Iterator[Original]:
    """The model in a folder or a GGUF file. allow: fields of config.json that may be there although we do not know them.

    Raises NotFound, UnsupportedModel, CorruptFile, DiskError."""
    if path.is_dir():
        with folder.open_folder(path) as found:
            spec, architecture = architectures.describe(config.parse(found.files["config.json"]), allow)
            yield _original(path, spec, architecture, found.checkpoint, found.files)
    else:
        with gguf.File(path) as file:
            shapes = {label: tensor.shape for label, tensor in file.tensors.items()}
            factors = {label: file.vector(label) for label in metadata.FACTORS}
            read = metadata.read(file.metadata, shapes, factors, allow)
            spec, _ = architectures.describe(read.config, allow)
            files = {"config.json": json.dumps(read.config).encode(), **vocabulary.files(file.metadata)}
            yield _original(path, spec, read, gguf.Checkpoint(file, read.interleaved), files)


def _original(path: Path, spec: Spec, architecture: Named, reader: Reader, files: Mapping[str, bytes]) -> Original:
    plan = decoder.plan(spec, min(spec.context, DEFAULT_CONTEXT))
    sources = names.sources(spec, plan, architecture, reader.tensors)
    return Original(str(path), spec, plan, sources, reader, as_packed(files), names.ignored(spec, architecture))


def as_packed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """A model's files as a packed file has them: tokenizer.json is written anew, because each run reads it."""
    return {name: compact(data) if name == "tokenizer.json" else data for name, data in files.items()}
