"""The models on this machine as a collection: what is here, what each is, whether it is whole; quantizing, choosing, cleaning.

`engine.py` makes one of them compute; here nothing is computed and nothing printed: news go through callbacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import engine, estimate, places, settings
from llmcli.engine import Progress
from llmcli.errors import CorruptFile, LlmError, NotFound, UsageError
from llmcli.plan import Plan
from llmcli.weights import atomic, leftovers, packed, store
from llmcli.weights.aliases import Alias, aliases
from llmcli.weights.packed import Packed

if TYPE_CHECKING:
    from llmcli.offload.decide import Layers
    from llmcli.originals import Original

BITS = {"int4": 4, "int8": 8, "none": 16}
"""Quantizations by how much they keep."""


@dataclass(frozen=True)
class Known:
    """A short name; here: its quantizations on this machine."""

    name: str
    alias: Alias
    here: tuple[str, ...]


def known() -> list[Known]:
    """The models with a short name, in the order of models.toml; the user's own come last."""
    return [Known(name, alias, tuple(store.quantizations(name))) for name, alias in aliases().items()]


def list_models() -> list[store.Model]:
    """What is on this machine, damaged files included."""
    return store.every()


def remove(reference: str) -> list[Path]:
    """Removes a model, or one of its quantizations; returns the files that are gone."""
    return store.remove(reference)


def describe(reference: str | None, context: int | None = None) -> dict[str, Any]:
    """Facts about a model, without loading it; memory for a full context of so many tokens (None: the usual one)."""
    with packed.open(store.find(reference)) as file:
        spec, plan = engine.read_plan(file, context)
        first = spec.layers[0]
        tokenizer = engine.read_tokenizer(file)
        memory = engine.memory_of(file, plan, estimate.cache_type(file.quantization))
        kinds: dict[str, int] = {}
        for label, entry in file.entries.items():
            group = entry.format if entry.format in ("file", "vector") else f"{plan.weights[label].kind}, {entry.format}"
            kinds[group] = kinds.get(group, 0) + entry.stored
        return {
            "name": file.name,
            "quantization": file.quantization,
            "file": str(file.path),
            "bytes": file.size,
            "architecture": _architecture(file),
            "parameters": plan.parameters,
            "layers": len(spec.layers),
            "hidden": spec.hidden,
            "heads": first.attention.heads,
            "kv_heads": first.attention.kv_heads,
            "head_size": first.attention.head_size,
            "vocabulary": spec.vocab,
            "context": spec.context,
            "memory_bytes": sum(memory.values()),
            "memory_context": plan.context,
            "memory_by_use": memory,
            "bytes_by_kind": kinds,
            "tokenizer": f"{tokenizer.size:,} tokens",
            "begins_with": tokenizer.bos,
            "ends_with": tokenizer.eos,
            "template": bool(engine.read_templates(file)),
            "source": file.source,
            "revision": file.revision,
            "created": file.created,
            "llm": file.llm,
        }


def template(reference: str | None) -> str:
    """A model's chat template. Raises NotFound where it has none, TemplateError where none of several is for plain conversations."""
    with packed.open(store.find(reference)) as file:
        found = engine.read_template(file)
        if found is None:
            raise NotFound(f"{file.name}:{file.quantization} has no chat template", todo="It continues texts: llm run")
        return found


def plan_of(reference: str | None, context: int | None = None) -> Plan:
    """The operations that compute one step of a model."""
    with packed.open(store.find(reference)) as file:
        return engine.read_plan(file, context)[1]


def gpu_placement(reference: str | None, context: int | None, layers: Layers) -> tuple[list[dict[str, Any]], str]:
    """Which layers `llm run --gpu-layers` would put where on this machine now: a record for each layer (layer, device, bytes of weights
    and of the KV cache of a full context, why), and why no GPU is used, or ''. GPUs are asked for their free memory."""
    from llmcli.offload import decide, place

    with packed.open(store.find(reference)) as file:
        _, plan = engine.read_plan(file, context)
        costs = engine.costs_of(file, plan, estimate.cache_type(file.quantization))
        found = decide.decide(decide.Wish("auto", layers), costs)
        rows = place.explain(costs, found.placement, found.rooms, found.wanted)
        return [asdict(row) for row in rows], found.reason


def _architecture(file: Packed) -> str:
    """What config.json calls it, '' where there is none."""
    found = engine.read_json(file, "config.json").get("architectures")
    return str(found[0]) if isinstance(found, list) and found else ""


def meant(references: list[str]) -> dict[str, Path]:
    """Label -> file of all models that these references mean; none: all that are here, damaged ones too. Raises NotFound."""
    if references:
        return {label: path for reference in references for label, path in store.matching(reference).items()}
    return {f"{model.name}:{model.quantization}".rstrip(":"): model.path for model in store.every()}


def verify(label: str, path: Path, progress: Progress | None = None) -> int:
    """Reads a packed file whole and compares every hash; returns its bytes. Raises HashMismatch, CorruptFile and the like."""
    with packed.open(path) as file:
        if path.parent in (places.demo(), places.models()) and (damaged := store.record(path).damaged):
            raise CorruptFile(str(path), damaged)
        engine.read_plan(file, None)
        file.verify(None if progress is None else lambda done, total: progress(label, done, total))
        return file.size


def quantize(
    reference: str,
    quantization: str,
    name: str | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Makes a model in fewer bits of one that is here, under its name or another; returns the packed file.

    It is made of the folder or GGUF file that the model came from, where that still holds the same, else of the packed file with
    the most bits. notify: hears, in a line each, what it is made of. Raises NotFound, UsageError, HashMismatch, DiskError."""
    from llmcli.models import names
    from llmcli.originals import Original, as_packed
    from llmcli.weights import repack, writer

    say = notify or (lambda text: None)
    found = store.matching(reference)
    path = max(found.values(), key=lambda path: BITS.get(path.stem.rpartition("-")[2], 0))
    with packed.open(path) as file, ExitStack() as stack:
        spec, plan = engine.read_plan(file, None)
        plain = file.name if Path(reference).is_file() else store.name_of(reference)
        name = store.checked_name(name or plain)
        target, label, own = store.path_of(name, quantization), f"{name}:{quantization}", f"{plain}:{file.quantization}"
        if target.exists():
            raise UsageError(f"{label} is here already", todo=f"llm rm {label} removes it, --name gives another name")
        whole = file.quantization == "none"
        original = None if whole else _original(file, plan, stack)
        if original is None:
            if BITS[quantization] >= BITS[file.quantization]:
                why = f"only {own} is here, and what rounding took away does not come back"
                raise UsageError(f"cannot make {label}", why, "Import or pull the original model")
            file.verify()
            copies = {weight: names.copy(weight) for weight in plan.weights}
            original = Original(own, spec, plan, copies, repack.Unpacked(file), {}, ())
        again = isinstance(original.reader, repack.Unpacked) and not whole
        say(f"from {original.label}" + (": rounding twice loses a little more than rounding the original" if again else ""))
        writer.write_model(
            target,
            plan.weights,
            original.sources,
            original.reader,
            quantization,
            {"name": name, "source": f"{own} of {file.source}" if again else file.source, "revision": file.revision, "spec": file.spec},
            as_packed({inner: file.file(inner) for inner in file.files}),
            ignored=original.ignored,
            progress=None if progress is None else lambda done, total: progress(label, done, total),
            pack=engine.packer(),
        )
    return target


def _original(file: Packed, plan: Plan, stack: ExitStack) -> Original | None:
    """The folder or GGUF file that a model was imported from, or its download where that was kept, if it still holds the same model."""
    from llmcli import originals
    from llmcli.weights import repack

    pulled = re.fullmatch("[0-9a-f]{40,64}", file.revision)
    path = places.downloads() / file.source.replace("/", "--") / file.revision if pulled else Path(file.source)
    if not (path.is_absolute() and path.exists()):
        return None
    with suppress(LlmError):
        found = stack.enter_context(originals.opened(path))
        same = found.spec.to_json() == file.spec and found.files == originals.as_packed({name: file.file(name) for name in file.files})
        if same and repack.same_vectors(file, plan.weights, found.sources, found.reader):
            return found
    return None


def use(model: str) -> Path:
    """Makes a model that is here the default, in config.toml; returns that file. Raises NotFound, UsageError, DiskError."""
    settings.read()  # what is wrong with it is said before anything is written
    found = store.find(model)
    path = settings.path().resolve()  # a link stays one
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    data = settings.with_model(text, str(found.resolve()) if Path(model).is_file() else model).encode()
    with atomic.replacing(path, len(data)) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return path


@dataclass(frozen=True)
class Leftover:
    """Something that `clean` removes. kind: 'unfinished' or 'kernels'."""

    path: Path
    kind: str
    size: int


def left_over() -> list[Leftover]:
    """What interrupted work and other versions of llm left in our folders."""
    from llmcli.backends.cpu import objects
    from llmcli.backends.cuda import objects as cubins

    kernels = [*objects.stale(), *cubins.stale()]
    found = [("unfinished", path) for path in leftovers.unfinished()] + [("kernels", path) for path in kernels]
    return [Leftover(path, kind, leftovers.size(path)) for kind, path in found]


def clean(found: list[Leftover]) -> None:
    """Removes what `left_over` found. Raises DiskError."""
    for leftover in found:
        leftovers.delete(leftover.path)
