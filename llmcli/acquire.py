"""Where models come from: a folder in the Hub's layout, a GGUF file, a hub. Each becomes a packed file among our models.

    a path -(originals)-> an open model: its description, its plan, where its weights are
    tensors -(weights/convert, formats/*)-> packed bytes -(weights/writer)-> file
Nothing is printed: news go through callbacks. Imports are inside functions, because a run needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from llmcli import estimate
from llmcli.engine import DEFAULT_CONTEXT, Progress, json_object, packer
from llmcli.memory import MIB
from llmcli.models import decoder
from llmcli.plan import Plan
from llmcli.text.tokenizer import Tokenizer
from llmcli.weights import store
from llmcli.weights.present import QUANTIZATIONS
from llmcli.weights.wanted import Wanted


def import_model(
    source: Path,
    quant: str | None,
    name: str | None = None,
    progress: Progress | None = None,
    *,
    path: Path | None = None,
    origin: str = "",
    allow: Collection[str] = (),
) -> Path:
    """Makes the model `name` (default: that of the source) from a folder in the Hub's layout or a GGUF file; returns the packed file.

    quant: int8, int4, none; None: matrices as they are stored, where a format of ours holds that, else in int8 or in 5 bits.
    path: where to write it (default: its place among the models); origin: what to record as its source (default: the source).
    allow: fields of config.json that may be there although we do not know them.
    Raises NotFound, UnsupportedModel, CorruptFile, NumericalError, DiskError.
    """
    from llmcli import originals
    from llmcli.weights import writer

    whole = source.resolve()
    name = store.checked_name(name or (whole.name if source.is_dir() else whole.stem))
    with originals.opened(source, allow) as original:
        _check(original.files)
        label = quant or writer.nearest(original.plan.weights, original.sources, original.reader.tensors, original.ignored)
        path = path or store.path_of(name, label)
        metadata = {"name": name, "source": origin or str(whole), "revision": "", "spec": original.spec.to_json()}
        writer.write_model(
            path,
            original.plan.weights,
            original.sources,
            original.reader,
            label,
            metadata,
            original.files,
            ignored=original.ignored,
            progress=None if progress is None else partial(progress, f"{name}:{label}"),
            pack=packer(),
            keep=quant is None,
        )
    return path


def _check(files: Mapping[str, bytes]) -> None:
    """Finds now what is broken in a model's files, not at its first run. Raises CorruptFile."""
    read = {name: json_object(data, name) for name, data in files.items() if name.endswith(".json") and name != "tokenizer.json"}
    Tokenizer(files["tokenizer.json"], read.get("tokenizer_config.json"))


def _smaller(reference: str, wanted: Wanted, plan: Plan) -> Iterator[estimate.Variant]:
    """What is wanted of a hub, in fewer bits."""
    from llmcli.weights import randoms

    for quantization in reversed(QUANTIZATIONS[: QUANTIZATIONS.index(wanted.quantization)]):
        how = f"llm pull {store.name_of(reference)} --quant {quantization}"
        yield estimate.Variant(f"{wanted.name}:{quantization}", quantization, randoms.size_of(plan.weights, quantization), how)


def pull(
    reference: str,
    quant: str | None = None,
    name: str | None = None,
    *,
    keep_source: bool = False,
    timeout: float | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Gets a model from the hub: an alias or org/repo[@revision]; returns the packed file. What is here is not got again.

    quant, name: default to the alias's or to int8, and to the reference; keep_source: the downloads stay; timeout: seconds to
    wait for another process that gets the same model (None: as long as it takes). notify: hears, before the first byte of a weight,
    what is coming; allow: as in `import_model`. Raises NotFound, AccessDenied, NetworkError, HashMismatch, ResourceError,
    UnsupportedModel, CorruptFile, NumericalError, UsageError.
    """
    from llmcli import originals
    from llmcli.models import architectures, config, names
    from llmcli.weights import pull as pulling
    from llmcli.weights import wanted as wanting

    say = notify or (lambda line: None)
    wanted = wanting.read(reference, quant, name)
    path = store.path_of(wanted.name, wanted.quantization)
    if pulling.present(path, wanted):
        pulling.tidy(path)
        say(f"{wanted.name}:{wanted.quantization} is here already")
        return path
    with pulling.repository(wanted, path, keep_source, timeout, say) as repository:
        listing = repository.listing
        if pulling.present(path, wanted, listing.commit):  # another process made it meanwhile
            repository.remove()
            return path
        spec, architecture = architectures.describe(config.parse(repository.config), allow)
        files = originals.as_packed(repository.files)
        plan = decoder.plan(spec, min(spec.context, DEFAULT_CONTEXT))
        _check(files)
        repository.read_headers()
        made = names.sources(spec, plan, architecture, repository.tensors)
        metadata = {"name": wanted.name, "source": wanted.repository, "revision": listing.commit, "spec": spec.to_json()}
        job = repository.job(path, plan.weights, made, wanted.quantization, metadata, files, names.ignored(spec, architecture), packer())
        size, kind = job.packing.weights_size, estimate.cache_type(wanted.quantization)
        model = estimate.Model(plan, len(files["tokenizer.json"]))
        here = estimate.Variant(f"{wanted.name}:{wanted.quantization}", wanted.quantization, size)
        estimate.require(model, here, kind, lambda: _smaller(reference, wanted, plan), least=1)
        most = sum(model.needed(size, kind).values())
        disk, free = job.check_disk()
        licence = f"licence {listing.licence}" if listing.licence else "no licence is named"
        say(f"{listing.repository} at {listing.commit[:12]}: {plan.parameters / 1e6:,.1f} million parameters, {licence}, {listing.access}")
        say(
            f"{job.download / MIB:,.1f} MiB to download; {wanted.quantization} takes {size / MIB:,.1f} MiB, and {most / MIB:,.0f} MiB of"
            f" memory with {plan.context:,} tokens of context; {disk / MIB:,.1f} MiB of disk needed, {free / MIB:,.0f} MiB free"
        )
        if (have := estimate.room()) is not None and most > have:
            say(f"in the memory that is available now, {model.fits(have, size, kind)[0]:,} tokens of context fit")
        job.run(lambda done, total: progress(listing.repository, done, total) if progress else None)
    return path
