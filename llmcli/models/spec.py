"""What a model is, in the field's own terms: frozen records that `arch/*.py` fill from config.json.

A Spec is plain data and goes as JSON into the packed file, so that running a model needs neither its
config.json nor its architecture file. `decoder.py` turns it into a plan. To describe a family that these fields
cannot say, add a field with a default (or an operation); never branch on a family's name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from llmcli.errors import CorruptFile
from llmcli.models import limits
from llmcli.ops import ACTIVATIONS


@dataclass(frozen=True)
class Norm:
    """kind: 'rms' or 'layer'. bias only with 'layer'. (1 + weight is folded into the weights at conversion.)"""

    kind: str = "rms"
    eps: float = 1e-5
    bias: bool = False
    weight: bool = True
    """False: only the mean and the size are taken out."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions. size: rotated columns of each head (even). scaling: '' or a kind known to `rope.py`."""

    size: int
    base: float = 10000.0
    interleaved: bool = False
    scaling: str = ""
    factor: float = 1.0
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    """0: the kind's own rule."""
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Attention:
    """heads queries over kv_heads keys and values of head_size; scale multiplies q.k."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    bias: bool = False
    out_bias: bool = False
    qk_norm: str = ""
    """'' none, 'head': each head by itself, one weight for all heads; 'full': over all heads' columns at once;
    'each': each head by itself, its own weights. Queries and keys have a weight each."""
    window: int = 0
    """Keys at positions p - window < k <= p; 0: all."""
    softcap: float = 0.0
    alibi: tuple[float, ...] = ()
    """ALiBi slopes, one a head, or empty."""
    sinks: bool = False
    clip: float = 0.0
    """Queries, keys and values are cut off at -clip and clip; 0: they are not."""


@dataclass(frozen=True)
class Mlp:
    """size: inner width. gated: down(act(gate x) * up x), else down(act(up x))."""

    size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """count experts, `chosen` a token; softmax 'before' or 'after' the choice (see ops.route)."""

    count: int
    chosen: int
    size: int
    activation: str = "silu"
    gated: bool = True
    softmax: str = "before"
    normalise: bool = True
    scale: float = 1.0
    bias: bool = False
    router_bias: bool = False
    limit: float = 0.0
    """Gates are at most this, and what they multiply between -limit and limit; 0: no limit."""
    shift: float = 0.0
    """Added to what the gates multiply."""
    shared: int = 0
    """Inner width of an MLP beside the experts, which every token passes; 0: none."""
    shared_gate: bool = False
    """The MLP beside is multiplied by the sigmoid of one more row of the router."""


@dataclass(frozen=True)
class Layer:
    """One block. residual 'sequential': x += attn(norm x); x += mlp(norm x). 'parallel': x += attn(norm x) +
    mlp(norm' x), where norm' is norm itself when shared_norm. Exactly one of mlp and experts is set."""

    attention: Attention
    mlp: Mlp | None = None
    experts: Experts | None = None
    rope: Rope | None = None
    residual: str = "sequential"
    shared_norm: bool = False
    pre_norms: bool = True
    """False: attention and MLP read x itself, and only what they give is normalised."""
    post_norms: bool = False
    """A norm more behind attention and behind the MLP: x += norm(attn(norm x)) ("sandwich")."""


@dataclass(frozen=True)
class Spec:
    """A decoder-only language model."""

    vocab: int
    hidden: int
    context: int
    norm: Norm
    layers: tuple[Layer, ...]
    tied: bool = True
    head_bias: bool = False
    positions: int = 0
    """Rows of the learned position table; 0: none."""
    position_offset: int = 0
    embedding_norm: bool = False
    """A norm of the embeddings, before the first layer."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What attention and MLP give is multiplied by this before it is added."""
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    final_norm: bool = True

    def to_json(self) -> str:
        """Compact JSON; equal neighbouring layers are stored once with a count."""
        data = dataclasses.asdict(self)
        runs: list[dict[str, Any]] = []
        for layer in data.pop("layers"):
            if runs and runs[-1]["layer"] == layer:
                runs[-1]["times"] += 1
            else:
                runs.append({"times": 1, "layer": layer})
        return json.dumps({**data, "layers": runs}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Spec:
        """The inverse of to_json. Raises CorruptFile on anything that is not exactly a Spec."""
        try:
            data = json.loads(text, parse_constant=_no_constant)
            runs = data.pop("layers")
            layers: list[Layer] = []
            for run in runs:
                times = run["times"]
                if not (type(times) is int and 1 <= times and len(layers) + times <= limits.LAYERS):
                    raise ValueError("layer count out of range")
                layers += [_build(Layer, run["layer"])] * times
            return checked(_build(Spec, {**data, "layers": layers}))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptFile("the model description in the packed file", str(error)) from error


def checked(spec: Spec) -> Spec:
    """The spec itself. Raises CorruptFile when its numbers cannot be a model's: descriptions come from files."""
    last = None
    try:
        _within(spec, vocab=limits.VOCAB, hidden=limits.WIDTH, context=limits.CONTEXT)
        _require(spec.norm.kind in ("rms", "layer") and spec.norm.eps >= 0, "an unknown norm")
        _require(0 <= spec.position_offset <= spec.positions <= limits.CONTEXT, "an impossible position table")
        _require(1 <= len(spec.layers) <= limits.LAYERS, "an impossible number of layers")
        for layer in spec.layers:
            if layer is not last:
                _check_layer(layer)
            last = layer
    except ValueError as error:
        raise CorruptFile("the model's description", str(error)) from error
    return spec


def _check_layer(layer: Layer) -> None:
    attention, rope = layer.attention, layer.rope
    _within(attention, heads=limits.HEADS, kv_heads=limits.HEADS, head_size=limits.HEAD_SIZE)
    _require(attention.heads % attention.kv_heads == 0, f"{attention.heads} heads do not divide over {attention.kv_heads} key heads")
    _require(attention.qk_norm in ("", "head", "full", "each"), "an unknown query and key norm")
    _require(0 <= attention.window <= limits.CONTEXT, "an impossible window")
    _require(len(attention.alibi) in (0, attention.heads), "as many ALiBi slopes as heads are needed")
    _require(layer.residual in ("sequential", "parallel"), "an unknown residual")
    if rope is not None:
        _require(2 <= rope.size <= attention.head_size and rope.size % 2 == 0, "an impossible number of rotated columns")
    inner = layer.mlp or layer.experts
    if inner is None or (layer.mlp and layer.experts):
        raise ValueError("a layer needs either an MLP or experts")
    _within(inner, size=limits.WIDTH)
    _require(inner.activation in ACTIVATIONS, f"unknown activation {inner.activation[:40]!r}")
    _require(layer.pre_norms or (layer.post_norms and layer.residual == "sequential"), "a layer without norms")
    if layer.experts is not None:
        _require(0 <= layer.experts.shared <= limits.WIDTH, "an impossible shared expert")
        _within(layer.experts, count=limits.EXPERTS, chosen=layer.experts.count)
        _require(layer.experts.softmax in ("before", "after"), "an unknown router")


def _within(record: Any, **most: int) -> None:
    for name, limit in most.items():
        value = getattr(record, name)
        _require(1 <= value <= limit, f"{name} is {value:,}, not between 1 and {limit:,}")


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(why)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _build(kind: Any, data: Any) -> Any:
    """Builds the frozen record `kind` from JSON data, checking every field's type."""
    hints = typing.get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"unknown fields {str(sorted(unknown))[:100]} in {kind.__name__}")
    return kind(**{name: _convert(hints[name], value, name) for name, value in data.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(v if dataclasses.is_dataclass(v) else _convert(inner, v, name) for v in value)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {type(value).__name__}, not {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{name} is not a finite number")
    return value
