"""Options that several commands share, each defined once: flags, range, help. What is out of range ends with exit code 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from llmcli.errors import UsageError
from llmcli.sampling.settings import COUNTS, NUMBERS, check_bias, check_count, check_number

if TYPE_CHECKING:
    from llmcli.cli.console import Console
    from llmcli.engine import Engine


def option(*flags: str, help: str, section: str = "", metavar: str | None = None, parser: Callable[[str], Any] | None = None) -> Any:
    """Typer's Option. section: a heading of the command's help; defaults are said in the help texts."""
    return typer.Option(*flags, help=help, rich_help_panel=section or None, metavar=metavar, parser=parser, show_default=False)


def number(low: float, high: float) -> Callable[[str], float]:
    """A converter: a finite number from low to high."""

    def convert(word: str) -> float:
        with contextlib.suppress(ValueError):
            if not check_number(value := float(word), low, high):
                return value
        raise typer.BadParameter(check_number(word, low, high))

    return convert


def count(low: int, high: int) -> Callable[[str], int]:
    """A converter: a whole number from low to high."""

    def convert(word: str) -> int:
        with contextlib.suppress(ValueError):
            if not check_count(value := int(word), low, high):
                return value
        raise typer.BadParameter(check_count(word, low, high))

    return convert


def ranged(setting: str) -> Callable[[str], float]:
    """The converter of a sampling setting, by the ranges of sampling/settings.py."""
    return count(*COUNTS[setting]) if setting in COUNTS else number(*NUMBERS[setting])


def counts(low: int, high: int) -> Callable[[str], Counts]:
    """A converter: whole numbers from low to high with commas in between."""
    one = count(low, high)
    return lambda word: Counts(map(one, word.split(",")))


class Counts(tuple[int, ...]):
    """Whole numbers."""


class Bias(NamedTuple):
    token: int
    value: float


def bias(word: str) -> Bias:
    """A converter: ID=X, where X may be -inf."""
    with contextlib.suppress(ValueError):
        left, _, right = word.partition("=")
        found = Bias(int(left), float(right))
        if not check_bias(*found):
            return found
    raise typer.BadParameter(f"{word!r} is not ID=X: a token's id and what to add to its logit, such as 42=-1.5 or 42=-inf")


@dataclass(frozen=True, kw_only=True)
class Common:
    """For every command"""

    quiet: Annotated[bool, option("-q", "--quiet", help="no notes on standard error")] = False
    color: Annotated[
        Literal["auto", "always", "never"] | None, option("--color", metavar="WHEN", help="auto, always or never (also: NO_COLOR)")
    ] = None
    debug: Annotated[bool, option("--debug", help="a traceback with an error")] = False
    offline: Annotated[bool, option("--offline", help="never use the network")] = False


TEXT = "The text"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text from an argument, a file, standard input (see stdin.py)."""

    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="the text; one that begins with - goes after --", rich_help_panel=TEXT)
    ] = None
    file: Annotated[
        str | None, option("-f", "--file", section=TEXT, metavar="FILE", help="from a file, before the argument; -: standard input")
    ] = None
    no_stdin: Annotated[bool, option("--no-stdin", section=TEXT, help="leave standard input alone")] = False


MODEL = "The model"
AllowConfig = Annotated[
    list[str] | None,
    option("--allow-config", section=MODEL, metavar="FIELD", help="take a config.json with this unknown field (repeatable)"),
]


ModelName = Annotated[
    str | None, option("-m", "--model", section=MODEL, metavar="NAME", help="a name of llm list, or a path (LLMCLI_MODEL, else demo)")
]
Threads = Annotated[
    int | None, option("-t", "--threads", section=MODEL, metavar="N", parser=count(1, 1024), help="threads (the usable physical cores)")
]
CacheType = Annotated[
    Literal["auto", "f32", "f16", "int16", "int8"],
    option("--kv", section=MODEL, metavar="TYPE", help="of the KV cache: auto, f32, f16, int16 or int8"),
]
NoVerify = Annotated[bool, option("--no-verify", section=MODEL, help="skip the weights' checksums")]


def gpu_layers(word: str) -> str | int:
    """A converter: auto, all or a number of layers."""
    return word if word in ("auto", "all") else count(0, 10_000)(word)


def shares(word: str) -> Shares:
    """A converter: numbers from 0 on with commas in between, one of them larger than 0."""
    found = Shares(map(number(0, 1e9), word.split(",")))
    if not any(found):
        raise typer.BadParameter(f"{word!r} gives no GPU a share")
    return found


class Shares(tuple[float, ...]):
    """Numbers."""


GpuLayers = Annotated[
    Any,
    option("-ngl", "--gpu-layers", section=MODEL, metavar="N", parser=gpu_layers, help="layers on GPUs: a number, auto (what fits) or all"),
]
GpuSplit = Annotated[
    Shares | None,
    option("--gpu-split", section=MODEL, metavar="X,Y", parser=shares, help="shares of the GPUs in those layers (by free memory)"),
]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a model is run."""

    context: Annotated[
        int | None,
        option("-c", "--context", section=MODEL, metavar="N", parser=count(1, 2**24), help="tokens of context (the model's, at most 4096)"),
    ] = None
    threads: Threads = None
    kv: CacheType = "auto"
    device: Annotated[
        str, option("--device", "--backend", section=MODEL, metavar="NAME", help="what computes: auto (default), cpu, cuda or reference")
    ] = "auto"
    gpu_layers: GpuLayers = "auto"
    gpu_split: GpuSplit = None
    no_verify: NoVerify = False

    def open(self, name: str | None, console: Console, chat: bool = False, texts: int = 1, taps: Collection[str] = ()) -> Engine:
        """The engine of the model `name` with these options; chat: for conversations, where the model has them; texts: in work at once;
        taps: see `engine.load`."""
        from llmcli import engine
        from llmcli.cli import app

        if self.device not in ("auto", "cuda") and (self.gpu_layers not in ("auto", 0) or self.gpu_split):
            named = "--gpu-split" if self.gpu_split else "--gpu-layers"
            raise UsageError(f"{named} with --device {self.device}", "that device is no GPU", "Leave one of them out")
        loaded = engine.load(
            name,
            context=self.context,
            threads=self.threads,
            backend=self.device,
            kv=self.kv,
            texts=texts,
            verify=not self.no_verify,
            chat=chat,
            taps=taps,
            gpu_layers=self.gpu_layers,
            gpu_split=self.gpu_split or (),
            notify=console.note,
        )
        app.started()
        return loaded


@dataclass(frozen=True, kw_only=True)
class Model(Machine):
    """A model and how it is run."""

    model: ModelName = None

    def load(self, console: Console, chat: bool = False, texts: int = 1, taps: Collection[str] = ()) -> Engine:
        """The engine that these options mean."""
        return self.open(self.model, console, chat, texts, taps)


DRAW = "Sampling (the model's generation_config.json, else these)"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is drawn from a distribution; None: what the model says, else the default of sampling/settings.py."""

    temperature: Annotated[
        float | None,
        option("--temp", "--temperature", section=DRAW, metavar="X", parser=ranged("temperature"), help="0: the likeliest (0.8)"),
    ] = None
    top_k: Annotated[
        int | None, option("--top-k", section=DRAW, metavar="N", parser=ranged("top_k"), help="keep the N likeliest; 0: all (40)")
    ] = None
    top_p: Annotated[
        float | None,
        option("--top-p", section=DRAW, metavar="X", parser=ranged("top_p"), help="keep the likeliest that make up X (0.95)"),
    ] = None
    min_p: Annotated[
        float | None,
        option(
            "--min-p",
            section=DRAW,
            metavar="X",
            parser=ranged("min_p"),
            help="keep those X times as likely as the likeliest (0.05)",
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        option(
            "--repeat-penalty",
            section=DRAW,
            metavar="X",
            parser=ranged("repeat_penalty"),
            help="divides logits of tokens just used (1)",
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        option("--presence-penalty", section=DRAW, metavar="X", parser=ranged("presence_penalty"), help="off their logits, once (0)"),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        option(
            "--frequency-penalty",
            section=DRAW,
            metavar="X",
            parser=ranged("frequency_penalty"),
            help="off their logits, each use (0)",
        ),
    ] = None
    logit_bias: Annotated[
        list[Bias] | None, option("--logit-bias", section=DRAW, metavar="ID=X", parser=bias, help="add X to a token's logit; -inf bans it")
    ] = None

    def overrides(self) -> dict[str, Any]:
        """For `settings_for`."""
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
        return {name: getattr(self, name) for name in names} | {"logit_bias": dict(self.logit_bias) if self.logit_bias else None}


ANSWER = "The answer"
OUTPUT = "Output"


@dataclass(frozen=True, kw_only=True)
class Answering(Sampling):
    """An answer: how it is drawn, where it ends, what is told of it."""

    max_tokens: Annotated[
        int | None,
        option(
            "-n",
            "--max-tokens",
            "--predict",
            section=ANSWER,
            metavar="N",
            parser=ranged("max_tokens"),
            help="at most N tokens (to the end)",
        ),
    ] = None
    stop: Annotated[list[str] | None, option("--stop", section=ANSWER, metavar="TEXT", help="end before this text (repeatable)")] = None
    seed: Annotated[
        int | None,
        option("--seed", section=ANSWER, metavar="N", parser=ranged("seed"), help="the same seed, the same text (a new one)"),
    ] = None
    system: Annotated[str | None, option("-s", "--system", section=ANSWER, metavar="TEXT", help="instructions for a chat model")] = None
    think: Annotated[
        Literal["auto", "off", "show"],
        option("--think", section=ANSWER, metavar="HOW", help="a model's thoughts: auto (not in a pipe), off or show"),
    ] = "auto"
    raw: Annotated[bool, option("--raw", section=ANSWER, help="no chat template: continue the text")] = False
    probs: Annotated[
        int, option("--probs", section=OUTPUT, metavar="K", parser=count(0, 10_000), help="the K likeliest tokens at each place")
    ] = 0
    stats: Annotated[bool, option("--stats", section=OUTPUT, help="times, tokens a second and memory, on standard error")] = False

    def overrides(self) -> dict[str, Any]:
        seed = int.from_bytes(os.urandom(4)) if self.seed is None else self.seed
        return super().overrides() | {"max_tokens": self.max_tokens, "seed": seed, "stop": tuple(self.stop or ())}

    def check_system(self, engine: Engine) -> None:
        """Raises UsageError for a system text that nothing would read."""
        if self.system is not None and (self.raw or engine.template is None):
            why = "--raw leaves the template out" if self.raw else f"{engine.name} has no chat template"
            raise UsageError("--system has no effect", why, "Put the text before the prompt")


@dataclass(frozen=True, kw_only=True)
class Json:
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object")] = False


@dataclass(frozen=True, kw_only=True)
class Output:
    output: Annotated[
        Path | None, option("-o", "--output", section=OUTPUT, metavar="FILE", help="write the answer to FILE, which appears when complete")
    ] = None
