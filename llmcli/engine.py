"""The one place that ties the folders together: a model's name becomes something that computes.

    name -(weights/store)-> packed file -(models/decoder)-> plan -(backends/*)-> runner
Where packed files come from is in `acquire.py`, what else is done with them in `library.py`. It computes no token itself
(`generate.py` does) and prints nothing: news go through callbacks.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmcli import estimate
from llmcli.backends import backend as backends
from llmcli.backends.backend import Batch, Result
from llmcli.errors import CorruptFile, LlmError, TemplateError, UsageError
from llmcli.estimate import MOST_TOKENS as MOST_TOKENS
from llmcli.formats.format import Bytes, Floats, PackedTensor
from llmcli.kv import CODES, KVCache
from llmcli.models import decoder
from llmcli.models.spec import Spec
from llmcli.plan import Plan
from llmcli.text.tokenizer import Tokenizer
from llmcli.weights import packed, store
from llmcli.weights.packed import FILE, Packed
from llmcli.weights.present import QUANTIZATIONS

if TYPE_CHECKING:
    from llmcli.offload.decide import Decision, Layers
    from llmcli.offload.place import Costs
    from llmcli.text.template import Message
    from llmcli.text.thinking import Encode, Prompt, Think

DEFAULT = "default"
"""The name of the chat template for plain conversations, among several."""
DEFAULT_CONTEXT = 4096
GPU_CACHE = {"f32": "f32", "f16": "f16", "int16": "f16", "int8": "f16"}
"""The KV cache's type with layers on a GPU, which has none of codes, for that without."""
Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


class Engine:
    """A model in memory. Not safe for two threads at once. Close it."""

    def __init__(self, file: Packed, plan: Plan, spec: Spec, runner: backends.Runner, cache: KVCache, sinks: Mapping[int, Floats]) -> None:
        self.name = f"{file.name}:{file.quantization}"
        self.plan, self.spec, self.cache = plan, spec, cache
        self.sinks = sinks
        """[heads] of each layer whose attention has sinks: for those who compute its weights again."""
        self.context = plan.context
        self.memory_bytes = file.weights_size
        self.load_seconds = self.compile_seconds = 0.0
        """What loading took, and what compiling kernels took, which is done once on a machine."""
        self.tokenizer = read_tokenizer(file)
        self.templates = read_templates(file)
        self.generation_config = read_json(file, "generation_config.json")
        self.end_ids = _end_ids(self.generation_config, read_json(file, "config.json"), self.tokenizer)
        # A list there is its author's whole answer; one number is often the end of a document only.
        self._knows_turns = isinstance(self.generation_config.get("eos_token_id"), list)
        self._runner = runner

    @property
    def template(self) -> str | None:
        """The model's chat template; None: a model that continues texts. Raises TemplateError where it has several, none of them
        for plain conversations."""
        return default_template(self.templates)

    def prompt(self, messages: Sequence[Message], think: Think = "auto", encode: Encode | None = None) -> Prompt:
        """The tokens of a conversation, ready for the answer; the model's end-of-turn token ends answers from now on.

        think, encode: as of `text/thinking.py`.
        Raises UsageError for a model without a chat template, TemplateError, InputError.
        """
        from llmcli.text import template, thinking

        source = self.template
        if source is None:
            raise UsageError("a conversation", f"{self.name} has no chat template", "Give it a text to continue")
        found = thinking.prompt(self.tokenizer, source, messages, think, encode)
        if not self._knows_turns:
            end = template.turn_end(self.tokenizer, source)
            self.end_ids |= frozenset(() if end is None else (end,)) - found.shown
            self._knows_turns = True
        return found

    def run(self, batch: Batch) -> Result:
        """One step. Raises InputError for an unknown token, NumericalError, and Stopped when `stop` was called meanwhile;
        the sequences are then as long as before the step."""
        try:
            batch.check(self.plan)
            return self._runner.run(batch)
        except BaseException:
            batch.undo()
            raise

    def stop(self) -> None:
        """Ends the step that is running, soon. From any thread."""
        self._runner.stop()

    def close(self) -> None:
        self._runner.close()


def load(
    reference: str | None = None,
    *,
    context: int | None = None,
    threads: int | None = None,
    backend: str = "cpu",
    kv: str = "auto",
    texts: int = 1,
    verify: bool = True,
    chat: bool = False,
    taps: Collection[str] = (),
    gpu_layers: Layers = "auto",
    gpu_split: tuple[float, ...] = (),
    notify: Callable[[str], None] | None = None,
) -> Engine:
    """The model `reference` (None: the default one), ready to compute texts of up to `context` tokens.

    kv: type of the KV cache, of kv.DTYPES, or 'auto' (f32 for unquantized weights, else int16; f16 with a GPU). texts: how many
    texts of the full context the cache has room for at once; those with a common beginning share it (`past.py`). verify: compare
    checksums. chat: what renders the chat template is started meanwhile. taps: what results show of the layers (decoder.TAPS). backend:
    'cpu', 'reference', or 'auto' or 'cuda' with at most gpu_layers layers on GPUs, divided by the shares of gpu_split. notify: hears,
    in a line each, what takes unusually long or is out of order.
    Raises NotFound, ModelFileError, HashMismatch, OutOfMemory, UnsupportedModel, UsageError, DeviceError.
    """
    start = time.perf_counter()
    decided = backend in ("auto", "cuda")
    module = backends.get("cpu" if decided else backend)
    with packed.open(store.find(reference)) as file:
        spec, plan = read_plan(file, context, taps)
        kind = estimate.cache_type(file.quantization, kv)
        decision = _decided(file, plan, kv, texts, backend, gpu_layers, gpu_split, notify) if decided else None
        if decision is not None and decision.on_gpus:
            kind = GPU_CACHE[kind]
        require_memory(file, plan_here(plan, decision), kind, texts, handed(plan, decision))
        if chat and (source := read_templates(file).get(DEFAULT)):
            from llmcli.text import template

            template.prepare(source)
        weights = file.load(verify, module.checksum(notify) if verify else None)
        cache = KVCache(plan.cache, texts * estimate.blocks(plan), kind)
        if decision is not None and decision.on_gpus:
            from llmcli.offload import runner as offload

            runner: backends.Runner = offload.load(plan, weights, cache, decision.placement, threads or 0, notify)
        else:
            backends.check(module, plan, weights)
            runner = module.load(plan, weights, cache, threads or 0, MOST_TOKENS, notify)
        try:
            engine = Engine(file, plan, spec, runner, cache, _sinks(plan, weights))
        except BaseException:
            runner.close()
            raise
    engine.compile_seconds = getattr(runner, "compile_seconds", 0.0)
    engine.load_seconds = time.perf_counter() - start - engine.compile_seconds
    return engine


def _sinks(plan: Plan, weights: Mapping[str, PackedTensor]) -> dict[int, Floats]:
    found = {}
    for op in plan.ops:
        if op.kind == "attention" and op.weights[0] is not None:
            layer = op.params["layer"]
            assert isinstance(layer, int)
            found[layer] = weights[op.weights[0]].vector().copy()
    return found


def read_plan(file: Packed, context: int | None, taps: Collection[str] = ()) -> tuple[Spec, Plan]:
    """A packed file's model, and its plan for this context. Raises CorruptFile where its weights are not the plan's, UsageError."""
    spec = Spec.from_json(file.spec)
    plan = decoder.plan(spec, checked_context(spec, context), taps)
    file.check(plan.weights)
    return spec, plan


def checked_context(spec: Spec, wanted: int | None) -> int:
    """The context that is meant (None: the usual one). Raises UsageError for one that the model was not made for."""
    if wanted is None:
        return min(spec.context, DEFAULT_CONTEXT)
    if not 1 <= wanted <= spec.context:
        raise UsageError(f"a context of {wanted:,} tokens", f"the model was made for up to {spec.context:,}", "Change -c")
    return wanted


def plan_here(plan: Plan, decision: Decision | None) -> Plan:
    """The plan with the cache of those layers alone that are not on GPUs. (Weights are kept for layers that come back from there.)"""
    return plan if decision is None else replace(plan, cache=plan.cache[: len(plan.cache) - decision.on_gpus])


def memory_of(file: Packed, plan: Plan, kind: str) -> dict[str, int]:
    """Bytes, by use, of a process that has loaded the model and filled its context; kind: type of the KV cache."""
    return estimate.Model(plan, _tokenizer_size(file)).needed(file.weights_size, kind)


def handed(plan: Plan, decision: Decision | None) -> int:
    """Bytes of memory here for what layers on the CPU and on GPUs hand on to each other."""
    if decision is None or not decision.on_gpus:
        return 0
    from llmcli.offload import place

    return place.handed(plan, decision.placement)


def require_memory(file: Packed, plan: Plan, kind: str, texts: int = 1, more: int = 0) -> None:
    """Raises OutOfMemory when there is no room for the contexts of so many texts, and says what would fit: of this file, of the
    others of its name, and of those that `llm quantize` can make. more: bytes that are needed beside all that."""
    name = store.reference_of(file.path)
    wanted = estimate.Variant(f"{name}:{file.quantization}" if name else str(file.path), file.quantization, file.weights_size)
    estimate.require(estimate.Model(plan, _tokenizer_size(file), texts, more), wanted, kind, lambda: _smaller(file, plan, name))


def _smaller(file: Packed, plan: Plan, name: str) -> Iterator[estimate.Variant]:
    """A model in fewer bits; name: '' for a file that is not among our models."""
    from llmcli.weights import randoms

    here = store.quantizations(name)
    for quantization in reversed(QUANTIZATIONS[: QUANTIZATIONS.index(file.quantization)]):
        label = f"{name or file.path.stem}:{quantization}"
        if quantization not in here:
            how = f"llm quantize {name or shlex.quote(str(file.path))} --quant {quantization}"
            yield estimate.Variant(label, quantization, randoms.size_of(plan.weights, quantization), how)
            continue
        with suppress(LlmError), packed.open(here[quantization]) as other:
            yield estimate.Variant(label, quantization, other.weights_size)


def costs_of(file: Packed, plan: Plan, kind: str, texts: int = 1) -> Costs:
    """What the model's layers would take on GPUs; kind: type of the KV cache on the CPU."""
    from llmcli.offload.place import Costs

    stored = {name: file.entries[name].stored for name in plan.weights}
    return Costs(plan, stored, texts * estimate.blocks(plan), GPU_CACHE[kind])


def _decided(
    file: Packed,
    plan: Plan,
    kv: str,
    texts: int,
    device: str,
    layers: Layers,
    split: tuple[float, ...],
    notify: Callable[[str], None] | None,
) -> Decision:
    """Which layers go to GPUs; what is unexpected is said. Raises UsageError for 'cuda' with a cache that GPUs do not have."""
    from llmcli.offload import decide

    kind = estimate.cache_type(file.quantization, kv)
    if kv in CODES:
        if device == "cuda" or split or layers not in ("auto", 0):
            raise UsageError(f"--kv {kv} with layers on a GPU", "a KV cache of codes is the CPU's", "Use --kv f16 or --kv f32")
        layers = 0
    wish = decide.Wish(device, layers, split)
    found = decide.decide(wish, costs_of(file, plan, kind, texts))
    decide.say(wish, found, len(plan.cache), notify or (lambda line: None))
    return found


def _tokenizer_size(file: Packed) -> int:
    return file.entries[FILE + "tokenizer.json"].size


def read_json(file: Packed, name: str) -> dict[str, Any]:
    """A JSON object among the packed file's files; {} where there is none. Raises CorruptFile."""
    return json_object(file.file(name), f"{name} of {file.name}") if name in file.files else {}


def json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
        if b"\\u" in data:
            json.dumps(found, ensure_ascii=False).encode()  # half a character, written as \\ud800, is no text
    except (ValueError, RecursionError) as error:
        raise CorruptFile(what, str(error)) from error
    if not isinstance(found, dict):
        raise CorruptFile(what, "it is not a JSON object")
    return found


def read_tokenizer(file: Packed) -> Tokenizer:
    """Raises CorruptFile."""
    return Tokenizer(file.file("tokenizer.json"), read_json(file, "tokenizer_config.json"))


def read_templates(file: Packed) -> dict[str, str]:
    """The model's chat templates by name, from the first place that has any, as `transformers` looks for them (and, behind those,
    chat_template.json, which older models for text and images have)."""
    if "chat_template.jinja" in file.files:
        return {DEFAULT: file.file("chat_template.jinja").decode("utf-8", "replace")}
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(file, name).get("chat_template")
        if isinstance(found, list):
            found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        named = found if isinstance(found, dict) else {DEFAULT: found}
        texts = {key: text for key, text in named.items() if isinstance(key, str) and isinstance(text, str)}
        if texts:
            return texts
    return {}


def read_template(file: Packed) -> str | None:
    """The one that `Engine.template` is. Raises TemplateError."""
    return default_template(read_templates(file))


def default_template(templates: Mapping[str, str]) -> str | None:
    """The template for plain conversations; None where there are no templates at all. Raises TemplateError."""
    if templates and DEFAULT not in templates:
        names = ", ".join(sorted(templates))[:200]
        raise TemplateError("the model's chat template", f"it has several ({names}) and none that is called {DEFAULT}")
    return templates.get(DEFAULT)


def read_text(reference: str | None) -> tuple[str, Tokenizer, str | None]:
    """A model's name, tokenizer and chat template; its weights are not read. Raises NotFound, ModelFileError."""
    with packed.open(store.find(reference)) as file:
        return f"{file.name}:{file.quantization}", read_tokenizer(file), read_template(file)


def _end_ids(generation: Mapping[str, Any], model: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json says it, else config.json; the tokenizer's own always does."""
    found = generation.get("eos_token_id", model.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return frozenset(x for x in (*ids, tokenizer.eos_id) if type(x) is int)


def packer() -> Callable[[str, Floats], Bytes]:
    """(format, f32 [N, K]) -> the packed matrix, with the bytes of the format's own `pack`, faster."""
    from llmcli.backends.cpu import pack

    return pack.Packer()


@contextmanager
def opened(reference: str | None = None, **options: Any) -> Iterator[Engine]:
    """`load`, closed at the end of the block."""
    engine = load(reference, **options)
    try:
        yield engine
    finally:
        engine.close()
