"""Rotary positions: reading their kind from config.json, and the frequencies of each kind.

A pair of columns i of a head is rotated by position * frequency[i]; plainly, frequency[i] = base^(-2i / size). The
kinds change the frequencies so that a model reads texts longer than those it was trained on (`original_context`):
    linear     all divided by factor
    dynamic    a larger base, depending on the text's length ("NTK")
    yarn       low frequencies divided by factor, high ones kept, a ramp between them; cos and sin scaled up a little
    llama3     the same idea with a ramp over wavelengths
    longrope   each divided by a factor of its own, from one list for short texts and another for long ones
dynamic and longrope depend on the length of the text. Frequencies that change while a text grows would not fit the
keys already in the cache, so the length is the plan's context, from the first token on: the numbers of a text that
fills the context, read at once. A plan whose context is at most `original_context` is the unscaled model.

To add a kind: a function that reads its fields, one that makes its frequencies, a row in _KINDS.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import replace

from llmcli.errors import CorruptFile, UnsupportedModel
from llmcli.models import limits
from llmcli.models.config import Config
from llmcli.models.spec import Rope


def read(cfg: Config, head_size: int, context: int, base: float = 10000.0, portion: float = 1.0, fields: Config | None = None) -> Rope:
    """The rotary positions of a config.json, in any of the styles in use (`rope_theta` and `rope_scaling`, or
    `rope_parameters`). context: its max_position_embeddings; base, portion (rotated share of a head): used where the
    file says nothing; fields: the object to read, where there is one for each kind of layer. Raises UnsupportedModel
    for kinds we do not know."""
    if fields is None:
        fields = cfg.section("rope_scaling", "rope_parameters")
        base = cfg.number("rope_theta", "rotary_emb_base", low=2, high=1e15, default=base)
    portion = cfg.number("partial_rotary_factor", "rotary_pct", low=0, high=1, default=portion)
    size = int(head_size * fields.number("partial_rotary_factor", low=0, high=1, default=portion))
    if size < 2 or size % 2:
        raise UnsupportedModel("config.json", f"{size} of a head's {head_size} columns are rotated, and llm rotates an even number")
    kind = fields.word("rope_type", "type", choices={"default": "", **{name: name for name in _KINDS}, "su": "longrope"}, default="default")
    rope = Rope(size, fields.number("rope_theta", low=2, high=1e15, default=base), scaling=kind)
    trained = fields.count("original_max_position_embeddings", least=2, most=limits.CONTEXT, default=context)
    trained = cfg.count("original_max_position_embeddings", least=2, most=limits.CONTEXT, default=trained)
    if not kind:
        return rope
    factor = fields.number("factor", low=1e-3, high=1e6, default=context / trained if context != trained else None)
    return _KINDS[kind][0](fields, replace(rope, factor=factor, original_context=trained), context)


@functools.lru_cache(maxsize=8)  # layers share them
def frequencies(rope: Rope, context: int) -> tuple[float, ...]:
    """The size / 2 frequencies for a plan of this context: radians per position, float32 numbers because models are
    trained with such. Raises CorruptFile for a description that gives none."""
    try:
        plain = _plain(rope.base, rope.size)
        found = tuple(map(_single, _KINDS[rope.scaling][1](rope, plain, context) if rope.scaling else plain))
    except (KeyError, TypeError, ValueError, ArithmeticError, struct.error) as error:
        raise CorruptFile("the model's rotary positions", f"impossible parameters ({error})") from error
    if not all(math.isfinite(x) for x in found):
        raise CorruptFile("the model's rotary positions", "a frequency is not a finite number")
    return found


def _plain(base: float, size: int) -> list[float]:
    """base^(-2i / size), rounded where transformers rounds: at position 300 one unit in the last place of a frequency
    already moves a logit by 1e-5."""
    return [_single(1 / _single(base ** _single(2 * i / size))) for i in range(size // 2)]


def _single(x: float) -> float:
    """The nearest float32."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def attention_factor(rope: Rope) -> float:
    """What cos and sin are multiplied by: the description's own number, else the rule of its kind."""
    if rope.attention_factor or rope.factor <= 1:
        return rope.attention_factor or 1.0
    if rope.scaling == "yarn":
        return _magnitude(rope.factor, 1.0)
    if rope.scaling == "longrope":
        return math.sqrt(1 + math.log(rope.factor) / math.log(max(2, rope.original_context)))
    return 1.0


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_linear(fields: Config, rope: Rope, context: int) -> Rope:
    return rope


def _linear(rope: Rope, plain: list[float], context: int) -> list[float]:
    return [f / rope.factor for f in plain]


def _read_dynamic(fields: Config, rope: Rope, context: int) -> Rope:
    if rope.size == 2:
        raise UnsupportedModel("config.json", "dynamic rotary scaling needs more than two rotated columns")
    return replace(rope, original_context=context)


def _dynamic(rope: Rope, plain: list[float], context: int) -> list[float]:
    longer = max(context, rope.original_context) / rope.original_context
    base = rope.base * (rope.factor * longer - (rope.factor - 1)) ** (rope.size / (rope.size - 2))
    return _plain(base, rope.size)


def _read_yarn(fields: Config, rope: Rope, context: int) -> Rope:
    own = fields.number("attention_factor", low=1e-6, high=1e6, default=0.0)
    up = fields.number("mscale", low=0, high=1e6, default=0.0)
    down = fields.number("mscale_all_dim", low=0, high=1e6, default=0.0)
    if not own and up and down:
        own = _magnitude(rope.factor, up) / _magnitude(rope.factor, down)
    fast = fields.number("beta_fast", low=1e-6, high=1e6, default=32.0)
    slow = fields.number("beta_slow", low=1e-6, high=1e6, default=1.0)
    truncate = fields.flag("truncate", default=True)
    return replace(rope, attention_factor=own, beta_fast=fast, beta_slow=slow, truncate=truncate)


def _yarn(rope: Rope, plain: list[float], context: int) -> list[float]:
    def pair(rotations: float) -> float:
        """Which pair (a fraction) turns this often within the original context."""
        return rope.size * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    ramp = [min(1.0, max(0.0, (i - low) / (high - low or 0.001))) for i in range(len(plain))]
    return [f / rope.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]


def _read_llama3(fields: Config, rope: Rope, context: int) -> Rope:
    low = fields.number("low_freq_factor", low=1e-6, high=1e6)
    return replace(rope, low_frequency=low, high_frequency=fields.number("high_freq_factor", low=low * (1 + 1e-9), high=1e7))


def _llama3(rope: Rope, plain: list[float], context: int) -> list[float]:
    def scaled(f: float) -> float:
        turns = rope.original_context * f / (2 * math.pi)
        kept = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
        kept = min(1.0, max(0.0, kept))
        return (1 - kept) * f / rope.factor + kept * f

    return [scaled(f) for f in plain]


def _read_longrope(fields: Config, rope: Rope, context: int) -> Rope:
    own = fields.number("attention_factor", low=1e-6, high=1e6, default=0.0)
    short, long = (fields.numbers(f"{x}_factor", count=rope.size // 2, low=1e-6, high=1e9) for x in ("short", "long"))
    return replace(rope, attention_factor=own, short_factors=short, long_factors=long)


def _longrope(rope: Rope, plain: list[float], context: int) -> list[float]:
    factors = rope.long_factors if context > rope.original_context else rope.short_factors
    return [f / own for f, own in zip(plain, factors, strict=True)]


_KINDS: dict[str, tuple[Callable[[Config, Rope, int], Rope], Callable[[Rope, list[float], int], list[float]]]] = {
    "linear": (_read_linear, _linear),
    "dynamic": (_read_dynamic, _dynamic),
    "yarn": (_read_yarn, _yarn),
    "llama3": (_read_llama3, _llama3),
    "longrope": (_read_longrope, _longrope),
}
