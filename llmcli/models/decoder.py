"""Spec -> Plan: the one decoder that all architectures share. Options come from the spec's fields, never from a name.

A layer of the usual kind is
    normed = norm(x);  qkv = linear(normed);  rope(q | k);  cache_write(k, v);  attended = attention(q)
    branch = linear(attended);  x = x + branch
    normed = norm(x);  inner = linear(normed);  inner = act(gate) * up;  branch = linear(inner);  x = x + branch
with `parallel` residuals the second norm reads x before the first branch is added. Buffers are shared by all layers.
Operations are primitive and neighbours belong together (linear and the add behind it, activation and multiply):
fusing them is a backend's own business.

Since they are shared, what a layer leaves in them is gone after the next one. Taps keep copies of it, for those who look inside.
"""

from __future__ import annotations

from collections.abc import Collection

from llmcli.errors import ContextOverflow, InternalError
from llmcli.models import rope
from llmcli.models.spec import Attention, Experts, Layer, Mlp, Spec, checked
from llmcli.plan import Buffer, CacheLayer, Op, Param, Plan, Slot, Weight

TAPS = ("residual", "attention", "lens")
"""What a plan can keep of each layer, in buffers of their own:
residual    the residual stream x after layer n, `residual.n` [T, H], and before the first, `residual.embedding`;
attention   the queries of layer n as its attention reads them, `queries.n` [T, heads * D];
lens        logits made of the residual stream where the later layers are left out, `lens.n` and `lens.embedding` [R, V]
            (the logit lens; those after the last layer are the logits themselves)."""


def plan(spec: Spec, context: int, taps: Collection[str] = ()) -> Plan:
    """The plan of a model for texts of up to `context` tokens. taps: of TAPS; the model's own numbers are the same with and without.
    Raises CorruptFile for an impossible spec, and ContextOverflow where the learned position table is shorter than the context."""
    checked(spec)
    if unknown := set(taps) - set(TAPS):
        raise InternalError(f"unknown taps {sorted(unknown)}")
    if spec.positions and context > spec.positions - spec.position_offset:
        has = f"the model has {spec.positions - spec.position_offset:,} positions"
        raise ContextOverflow(f"a context of {context:,} tokens", has, "Lower -c")
    build = _Builder(taps)
    x = build.slot("x", spec.hidden)
    build.op("embed", "embedding", x, (), (build.weight("embedding", (spec.vocab, spec.hidden), "embedding"),))
    if spec.embedding_scale != 1:
        build.op("scale", "embedding scale", x, (x,), factor=spec.embedding_scale)
    if spec.positions:
        table = build.weight("position", (spec.positions, spec.hidden), "table")
        build.op("position_add", "position", x, (x,), (table,), offset=spec.position_offset)
    if spec.embedding_norm:
        build.norm(x, x, "embedding_norm", spec)
    _look(build, spec, x, "embedding")
    for number, layer in enumerate(spec.layers):
        _layer(build, spec, layer, number, context)
        _look(build, spec, x, str(number), last=number + 1 == len(spec.layers))
    logits = _logits(build, spec, x, "logits")
    build.op("top", "top", (), (logits,))
    cache = tuple(CacheLayer(layer.attention.kv_heads, layer.attention.head_size) for layer in spec.layers)
    return Plan(tuple(build.ops), build.buffers, build.weights, cache, spec.vocab, spec.hidden, context, logits.buffer, tuple(build.tapped))


class _Builder:
    """Collects operations, weights and buffers; a buffer is as wide as its widest use."""

    def __init__(self, taps: Collection[str]) -> None:
        self.taps = taps
        self.tapped: list[int] = []
        self.ops: list[Op] = []
        self.weights: dict[str, Weight] = {}
        self._buffers: dict[str, Buffer] = {}

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return tuple(self._buffers.values())

    def slot(self, name: str, width: int, start: int = 0, rows: str = "tokens", dtype: str = "f32") -> Slot:
        """Columns start .. start + width of the buffer `name`, which is made or widened to hold them."""
        old = self._buffers.get(name)
        self._buffers[name] = Buffer(name, max(start + width, old.width if old else 0), rows, dtype)
        return Slot(list(self._buffers).index(name), start, width)

    def weight(self, name: str, shape: tuple[int, ...], kind: str = "vector") -> str:
        self.weights[name] = Weight(name, shape, kind)
        return name

    def op(
        self,
        kind: str,
        label: str,
        out: Slot | tuple[Slot, ...],
        inputs: tuple[Slot, ...],
        weights: tuple[str | None, ...] = (),
        /,
        **params: Param,
    ) -> None:
        self.ops.append(Op(kind, out if isinstance(out, tuple) else (out,), inputs, weights, params, label))

    def tap(self, kind: str, name: str, x: Slot) -> None:
        """Keeps a copy of x where taps of this kind are wanted."""
        if kind in self.taps:
            kept = self.slot(name, x.width)
            self.op("scale", name, kept, (x,), factor=1.0)
            self.tapped.append(kept.buffer)

    def linear(self, out: Slot, x: Slot, name: str, bias: bool, kind: str = "matrix") -> None:
        """out = matrix @ x (+ bias); the weights are called `name` and `name`_bias."""
        matrix = self.weight(name, (out.width, x.width), kind)
        self.op("linear", name, out, (x,), (matrix, self.weight(f"{name}_bias", (out.width,)) if bias else None))

    def norm(self, out: Slot, x: Slot, name: str, spec: Spec) -> None:
        """One norm over all of x, of the model's kind."""
        weight = self.weight(name, (x.width,)) if spec.norm.weight else None
        weights = (weight, self.weight(f"{name}_bias", (x.width,)) if spec.norm.bias else None)
        self.op("norm", name, out, (x,), weights, kind=spec.norm.kind, eps=spec.norm.eps, heads=1)


def _layer(build: _Builder, spec: Spec, layer: Layer, number: int, context: int) -> None:
    name = f"layers.{number}"
    x, normed, branch = (build.slot(buffer, spec.hidden) for buffer in ("x", "normed", "branch"))
    read = normed if layer.pre_norms else x
    if layer.pre_norms:
        build.norm(normed, x, f"{name}.attention_norm", spec)
    attended = _attention(build, spec, layer, read, number, context)
    parallel = layer.residual == "parallel"
    if parallel and not layer.shared_norm:
        build.norm(normed, x, f"{name}.mlp_norm", spec)
    build.linear(branch, attended, f"{name}.attention_out", layer.attention.out_bias)
    _add(build, spec, layer, x, branch, f"{name}.attention")
    if layer.pre_norms and not parallel:
        build.norm(normed, x, f"{name}.mlp_norm", spec)
    if layer.mlp:
        _mlp(build, layer.mlp, branch, read, name)
    if layer.experts:
        _experts(build, layer.experts, branch, read, name)
    _add(build, spec, layer, x, branch, f"{name}.mlp")


def _add(build: _Builder, spec: Spec, layer: Layer, x: Slot, branch: Slot, name: str) -> None:
    """x += branch, normalised and scaled where the model does so."""
    if layer.post_norms:
        build.norm(branch, branch, f"{name}_post_norm", spec)
    if spec.residual_scale != 1:
        build.op("scale", f"{name}_scale", branch, (branch,), factor=spec.residual_scale)
    build.op("add", f"{name}_add", x, (x, branch))


def _attention(build: _Builder, spec: Spec, layer: Layer, normed: Slot, number: int, context: int) -> Slot:
    name, a = f"layers.{number}", layer.attention
    query_width, key_width = a.heads * a.head_size, a.kv_heads * a.head_size
    qkv = build.slot("qkv", query_width + 2 * key_width)
    query, key, value, both = (
        build.slot("qkv", width, start)
        for width, start in (
            (query_width, 0),
            (key_width, query_width),
            (key_width, query_width + key_width),
            (query_width + key_width, 0),
        )
    )
    build.linear(qkv, normed, f"{name}.qkv", a.bias)
    if a.clip:
        build.op("clip", f"{name}.clip", qkv, (qkv,), limit=a.clip)
    if a.qk_norm:
        _qk_norm(build, spec, a, query, a.heads, f"{name}.query_norm")
        _qk_norm(build, spec, a, key, a.kv_heads, f"{name}.key_norm")
    if layer.rope:
        build.op(
            "rope",
            f"{name}.rope",
            both,
            (both,),
            heads=a.heads + a.kv_heads,
            head_size=a.head_size,
            size=layer.rope.size,
            interleaved=layer.rope.interleaved,
            frequencies=rope.frequencies(layer.rope, context),
            factor=rope.attention_factor(layer.rope),
        )
    build.tap("attention", f"queries.{number}", query)
    build.op("cache_write", f"{name}.cache_write", (), (key, value), layer=number)
    attended = build.slot("attended", query_width)
    build.op(
        "attention",
        f"{name}.attention",
        attended,
        (query,),
        (build.weight(f"{name}.sinks", (a.heads,)) if a.sinks else None,),
        layer=number,
        heads=a.heads,
        kv_heads=a.kv_heads,
        head_size=a.head_size,
        scale=a.scale,
        window=a.window,
        softcap=a.softcap,
        slopes=a.alibi,
    )
    return attended


def _qk_norm(build: _Builder, spec: Spec, a: Attention, x: Slot, heads: int, name: str) -> None:
    """Normalises queries or keys in place; only the 'head' kind shares one weight over the heads."""
    weight = build.weight(name, (a.head_size if a.qk_norm == "head" else x.width,))
    segments = 1 if a.qk_norm == "full" else heads
    build.op("norm", name, x, (x,), (weight, None), kind=spec.norm.kind, eps=spec.norm.eps, heads=segments)


def _mlp(build: _Builder, mlp: Mlp, out: Slot, x: Slot, name: str) -> None:
    first = build.slot("inner", mlp.size)
    up = build.slot("inner", mlp.size, mlp.size) if mlp.gated else None
    whole = build.slot("inner", 2 * mlp.size) if mlp.gated else first
    build.linear(whole, x, f"{name}.gate_up" if mlp.gated else f"{name}.up", mlp.bias)
    build.op("activation", f"{name}.activation", first, (first,), kind=mlp.activation)
    if up:
        build.op("multiply", f"{name}.multiply", first, (first, up))
    build.linear(out, first, f"{name}.down", mlp.bias)


def _experts(build: _Builder, experts: Experts, out: Slot, x: Slot, name: str) -> None:
    e, hidden, inner = experts, x.width, experts.size * (2 if experts.gated else 1)
    router = build.slot("router", e.count)
    ids, shares = build.slot("expert_ids", e.chosen, dtype="i32"), build.slot("expert_weights", e.chosen)
    build.linear(router, x, f"{name}.router", e.router_bias, "router")
    build.op(
        "route",
        f"{name}.route",
        (ids, shares),
        (router,),
        count=e.count,
        chosen=e.chosen,
        softmax=e.softmax,
        normalise=e.normalise,
        scale=e.scale,
    )
    weights = (
        build.weight(f"{name}.experts_up", (e.count, inner, hidden), "experts"),
        build.weight(f"{name}.experts_down", (e.count, hidden, e.size), "experts"),
        build.weight(f"{name}.experts_up_bias", (e.count, inner)) if e.bias else None,
        build.weight(f"{name}.experts_down_bias", (e.count, hidden)) if e.bias else None,
    )
    build.op(
        "experts",
        f"{name}.experts",
        out,
        (x, ids, shares),
        weights,
        count=e.count,
        chosen=e.chosen,
        activation=e.activation,
        gated=e.gated,
        size=e.size,
        limit=e.limit,
        shift=e.shift,
    )
    if e.shared:
        shared = build.slot("shared", hidden)
        _mlp(build, Mlp(e.shared, e.activation, e.gated), shared, x, f"{name}.shared")
        if e.shared_gate:
            gate = build.slot("gate", 1)
            build.linear(gate, x, f"{name}.shared_gate", False, "router")
            build.op("activation", f"{name}.shared_sigmoid", gate, (gate,), kind="sigmoid")
            build.op("scale_rows", f"{name}.shared_scale", shared, (shared, gate))
        build.op("add", f"{name}.shared_add", out, (out, shared))


def _look(build: _Builder, spec: Spec, x: Slot, name: str, last: bool = False) -> None:
    """What is kept of the residual stream at this place."""
    build.tap("residual", f"residual.{name}", x)
    if "lens" in build.taps and not last:
        build.tapped.append(_logits(build, spec, x, f"lens.{name}").buffer)


def _logits(build: _Builder, spec: Spec, x: Slot, name: str) -> Slot:
    """From the residual stream to logits of the wanted rows, in the buffer `name`."""
    wanted = build.slot("wanted", spec.hidden, rows="outputs")
    logits = build.slot(name, spec.vocab, rows="outputs")
    build.op("select_rows", "select", wanted, (x,))
    if spec.final_norm:
        build.norm(wanted, wanted, "final_norm", spec)
    if spec.tied:
        bias = build.weight("head_bias", (spec.vocab,)) if spec.head_bias else None
        build.op("linear", "head", logits, (wanted,), ("embedding", bias))
    else:
        build.linear(logits, wanted, "head", spec.head_bias, "head")
    if spec.logit_scale != 1:
        build.op("scale", "logit scale", logits, (logits,), factor=spec.logit_scale)
    if spec.logit_softcap:
        build.op("softcap", "logit softcap", logits, (logits,), cap=spec.logit_softcap)
    return logits
