"""Options that several commands share, each defined once: flags, range, help. What is out of range ends with exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.cli.console import Console

if TYPE_CHECKING:
    from llmcli.engine import Engine


def number(low: float, high: float) -> Callable[[str], float]:
    """A converter: a finite number from low to high."""

    def convert(word: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := float(word)) <= high:
                return value
        raise ArgumentTypeError(f"{word!r} is not a number from {low:g} to {high:g}")

    return convert


def count(low: int, high: int) -> Callable[[str], int]:
    """A converter: a whole number from low to high."""

    def convert(word: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (value := int(word)) <= high:
                return value
        raise ArgumentTypeError(f"{word!r} is not a whole number from {low:,} to {high:,}")

    return convert


def bias(word: str) -> tuple[int, float]:
    """A converter: ID=X, where X may be -inf."""
    with contextlib.suppress(ValueError):
        left, _, right = word.partition("=")
        token, value = int(left), float(right)
        if 0 <= token < 2**31 and (value == -math.inf or abs(value) <= 1e6):
            return token, value
    raise ArgumentTypeError(f"{word!r} is not ID=X: a token's id and what to add to its logit, such as 42=-1.5 or 42=-inf")


def add_model(parser: argparse.ArgumentParser) -> None:
    """-m and how the model is run."""
    group = parser.add_argument_group("the model")
    group.add_argument("-m", "--model", metavar="NAME", help="a model of llm list, or a path (default: LLMCLI_MODEL, else demo)")
    group.add_argument("-c", "--context", metavar="N", type=count(1, 2**24), help="tokens of context (default: the model's, at most 4096)")
    group.add_argument("-t", "--threads", metavar="N", type=count(1, 1024), help="threads (default: the usable physical cores)")
    group.add_argument("--kv", choices=("auto", "f32", "f16"), default="auto", help="type of the KV cache")
    group.add_argument("--device", "--backend", metavar="NAME", default="cpu", help="what computes: cpu (default) or reference")
    group.add_argument("--no-verify", dest="verify", action="store_false", help="skip the weights' checksums")


def load(options: Namespace, console: Console) -> Engine:
    """The engine for the options of `add_model`."""
    from llmcli import engine

    return engine.load(
        options.model,
        context=options.context,
        threads=options.threads,
        backend=options.device,
        kv=options.kv,
        verify=options.verify,
        notify=console.note,
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """What is drawn from a distribution."""
    group = parser.add_argument_group("sampling (defaults: the model's generation_config.json, then these)")
    group.add_argument("--temp", "--temperature", dest="temperature", metavar="X", type=number(0, 100), help="0: the likeliest (0.8)")
    group.add_argument("--top-k", metavar="N", type=count(0, 2**31), help="keep the N likeliest tokens; 0: all (40)")
    group.add_argument("--top-p", metavar="X", type=number(0, 1), help="keep the likeliest that make up X (0.95)")
    group.add_argument("--min-p", metavar="X", type=number(0, 1), help="keep those at least X times as likely as the likeliest (0.05)")
    group.add_argument("--repeat-penalty", metavar="X", type=number(0.01, 100), help="divides logits of tokens just used (1: off)")
    group.add_argument("--presence-penalty", metavar="X", type=number(-100, 100), help="off their logits, once (0: off)")
    group.add_argument("--frequency-penalty", metavar="X", type=number(-100, 100), help="off their logits, for each use (0: off)")
    group.add_argument("--logit-bias", metavar="ID=X", type=bias, action="append", help="add X to a token's logit; -inf bans it")


def sampling(options: Namespace, engine: Engine) -> dict[str, Any]:
    """Overrides for `settings_for`. Raises UsageError for the bias of a token that the model does not have."""
    from llmcli.errors import UsageError

    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    overrides = {name: getattr(options, name) for name in names}
    if options.logit_bias:
        overrides["logit_bias"] = dict(options.logit_bias)
        largest = max(overrides["logit_bias"])
        if largest >= engine.plan.vocab:
            raise UsageError("--logit-bias", f"the model has no token {largest:,}; its ids end at {engine.plan.vocab - 1:,}")
    return overrides


def add_text(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    """The text as an argument, from a file, from standard input (see stdin.py)."""
    parser.add_argument("text", metavar=name, nargs="?", help=meaning)
    group = parser.add_argument_group("the text")
    group.add_argument("-f", "--file", metavar="FILE", help="text from a file, before the argument; -: standard input")
    group.add_argument("--no-stdin", dest="stdin", action="store_false", help="leave standard input alone")


def add_output(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write the answer to FILE, which appears when it is complete")
