"""Routing and experts of the CPU backend against the reference on odd sizes. Outputs are poisoned first, what lies outside
of them must stay as it was, and a token's bits must not depend on the tokens beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_calls import address, call, header, kernel
from llmcli.backends.cpu import target
from llmcli.backends.cpu.records import (
    ELEMENTWISE,
    EXPERTS_ACTIVATE,
    EXPERTS_COMBINE,
    EXPERTS_GROUP,
    EXPERTS_LINEAR,
    EXPERTS_PLACE,
    ROUTE,
    SLOT,
    bits,
    pack,
)
from llmcli.backends.reference import experts as reference
from llmcli.backends.reference.linear import unpack
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor
from llmcli.ops import ACTIVATIONS

Array = npt.NDArray[Any]
F = np.float32
HEIGHTS = [m for m in (1, 2, 4, 8) if m <= target.tile()]


# --- Routing


def route(logits: Array, chosen: int, softmax: str, normalise: bool, scale: float) -> tuple[Array, Array]:
    """The kernel's ids and weights, written into the middle of wider buffers."""
    tokens, count = logits.shape
    wide = np.full((tokens, count + 3), np.nan, F)
    wide[:, :count] = logits
    ids, weights = np.full((tokens, chosen + 2), -7, np.int32), np.full((tokens, chosen + 2), np.nan, F)
    args = pack(
        ROUTE, header=0, logits=address(wide), logits_stride=wide.strides[0], ids=address(ids) + 4, ids_stride=ids.strides[0],
        weights=address(weights) + 4, weights_stride=weights.strides[0], count=count, chosen=chosen, normalise=int(normalise),
        scale=bits(scale),
    )  # fmt: skip
    call(kernel(f"route.{softmax}"), args, reversed(range(tokens)))
    assert (ids[:, [0, -1]] == -7).all() and np.isnan(weights[:, [0, -1]]).all()
    return ids[:, 1:-1].copy(), weights[:, 1:-1].copy()


@pytest.mark.parametrize(("softmax", "normalise"), [("before", True), ("before", False), ("after", True)])
def test_routes_are_the_references(softmax: str, normalise: bool) -> None:
    rng = np.random.default_rng(1)
    for count, chosen in ((1, 1), (2, 1), (3, 3), (8, 2), (17, 5), (33, 33), (60, 4), (128, 8)):
        logits = rng.standard_normal((5, count)).astype(F) * 3
        logits[1] = np.round(logits[1])  # many ties
        logits[2] = -0.0
        logits[2, ::2] = 0.0
        logits[3, count // 2] = -1e30 if count == 1 else -np.inf
        ids, weights = route(logits, chosen, softmax, normalise, 1.5)
        wanted = reference.route(logits, count=count, chosen=chosen, softmax=softmax, normalise=normalise, scale=1.5)
        np.testing.assert_array_equal(ids, wanted[0])
        np.testing.assert_allclose(weights, wanted[1], rtol=1e-5, atol=1e-7)


def test_what_is_not_a_number_still_gives_experts() -> None:
    """Kernels that follow index by these ids."""
    logits = np.full((3, 7), np.nan, F)
    logits[1, 3:5] = [1, -2]
    logits[2] = np.inf
    ids, _ = route(logits, 4, "after", True, 1.0)
    assert ids.tolist() == [[0, 1, 2, 3], [3, 4, 0, 1], [0, 1, 2, 3]]


# --- Experts


class Mixture:
    """Random experts, packed in a format, as the reference and as kernels take them."""

    def __init__(self, format: str, count: int, hidden: int, size: int, gated: bool, bias: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.format, self.count, self.hidden, self.size, self.gated = format, count, hidden, size, gated
        self.inner = size * (2 if gated else 1)
        self.up = self._matrices(rng, self.inner, hidden)
        self.down = self._matrices(rng, hidden, size)
        self.up_bias = rng.standard_normal((count, self.inner)).astype(F) if bias else None
        self.down_bias = rng.standard_normal((count, hidden)).astype(F) if bias else None

    def _matrices(self, rng: np.random.Generator, rows: int, columns: int) -> PackedTensor:
        values = rng.standard_normal((self.count, rows, columns)).astype(F) * F(columns**-0.5)
        parts = np.concatenate([formats.get(self.format).pack(matrix) for matrix in values])
        data = formats.aligned(len(parts))
        data[:] = parts
        return PackedTensor(self.format, (self.count, rows, columns), data)

    def wanted(self, x: Array, ids: Array, weights: Array, **params: Any) -> Array:
        matrices = unpack(self.up), unpack(self.down)
        shape = {"count": self.count, "chosen": ids.shape[1], "gated": self.gated, "size": self.size}
        return reference.experts(x, ids, weights, *matrices, self.up_bias, self.down_bias, **shape, **params)

    def computed(self, x: Array, ids: Array, weights: Array, M: int, piece: int, activation: str, limit: float, shift: float) -> Array:
        """What the six kernels make of it."""
        tokens, chosen = ids.shape
        integers = formats.get(self.format).FORMAT.activations == "int8"
        rows = -(-(tokens * chosen + min(tokens * chosen, self.count) * (M - 1)) // M) * M
        widest = -(-max(self.hidden, self.inner) // 32) * 32
        codes = np.full(rows * widest, 99, np.int8)
        scales, sums = np.full(rows * widest // 32, np.nan, F), np.full(rows * widest // 32, 99, np.int32)
        outer, inner = np.full((rows, self.hidden + 3), np.nan, F), np.full((rows, self.inner + 5), np.nan, F)
        out, wide = np.full((tokens, self.hidden + 2), np.nan, F), np.full((tokens, self.hidden + 1), np.nan, F)
        wide[:, :-1] = x
        counts, slots = np.full(self.count, -9, np.int32), np.full((self.count + 1, SLOT), -9, np.int32)
        used, places = np.full(1, -9), np.full(tokens * chosen + 1, -9, np.int32)
        head = header(tokens=tokens)
        every = {"header": address(head), "chosen": chosen, "places": address(places)}
        quantized = {"codes": address(codes), "scales": address(scales), "sums": address(sums)}
        args = pack(
            EXPERTS_GROUP, **every, ids=address(ids), ids_stride=ids.strides[0], count=self.count, counts=address(counts),
            slots=address(slots), used=address(used), height=M,
        )  # fmt: skip
        call(kernel("experts.group"), args, [0])
        assert places[-1] == -9 and (slots[used[0] :] == -9).all() and slots[: used[0], 0].tolist() == sorted(set(ids.ravel().tolist()))
        args = pack(
            EXPERTS_PLACE, **every, **quantized, x=address(wide), x_stride=wide.strides[0], columns=self.hidden, out=address(outer),
            out_stride=outer.strides[0], height=M if integers else 0,
        )  # fmt: skip
        call(kernel("experts.place"), args, range(tokens * chosen))
        for first in (True, False):
            tensor, bias = (self.up, self.up_bias) if first else (self.down, self.down_bias)
            source, target_ = (outer, inner) if first else (inner, outer)
            module = formats.get(self.format)
            section = module.sections(*tensor.shape[1:])[0]
            table = (np.array(module.FORMAT.codes, np.int64) + 128).astype(np.uint8)
            tiles = -(-tensor.shape[1] // 16)
            scratch = np.empty(16 * (tensor.shape[2] + 31), np.uint8)
            args = pack(
                EXPERTS_LINEAR, header=address(head), outputs=0, x=address(codes if integers else source),
                x_scales=address(scales) if integers else source.strides[0], x_sums=address(sums), weights=address(tensor.data),
                weight_scales=address(tensor.data) + section, weight_offsets=0, codes=address(table), bias=address(bias),
                out=address(target_), out_stride=target_.strides[0], columns=tensor.shape[2], rows=tensor.shape[1],
                chunk_tiles=piece, add=0,
                scratch=address(scratch), scratch_bytes=0,
                slots=address(slots), used=address(used), slot_chunks=-(-tiles // piece),
                matrix_bytes=module.size(*tensor.shape[1:]), bias_bytes=4 * tensor.shape[1],
            )  # fmt: skip
            call(kernel(f"experts.{self.format}", M), args, reversed(range(self.count * -(-tiles // piece))))
            if first:
                args = pack(
                    EXPERTS_ACTIVATE, **every, inner=address(inner), inner_stride=inner.strides[0], size=self.size, **quantized,
                    limit=bits(limit), shift=bits(shift), height=M if integers else 0,
                )  # fmt: skip
                used_kernel = kernel("experts.activate", activation, self.gated, bool(limit))
                call(used_kernel, args, range(tokens * chosen))
        args = pack(
            EXPERTS_COMBINE, **every, weights=address(weights), weights_stride=weights.strides[0], said=address(outer),
            said_stride=outer.strides[0], out=address(out) + 4, out_stride=out.strides[0], columns=self.hidden,
        )  # fmt: skip
        call(kernel("experts.combine"), args, range(tokens))
        for array, width in ((outer, self.hidden), (inner, self.inner)):
            assert np.isnan(array[:, width:]).all()
        assert np.isnan(out[:, [0, -1]]).all()
        return out[:, 1:-1].copy()


def choices(rng: np.random.Generator, tokens: int, count: int, chosen: int) -> tuple[Array, Array]:
    """ids in any order and weights; the first experts are liked more, some are never chosen."""
    likes = rng.standard_normal((tokens, count)) - np.arange(count) / 3
    return np.argsort(-likes)[:, :chosen].astype(np.int32), rng.uniform(0.1, 1, (tokens, chosen)).astype(F)


@pytest.mark.parametrize("format", ["int8", "int4", "f32", "bf16"])
def test_experts_are_the_references_and_each_token_by_itself(format: str) -> None:
    rng = np.random.default_rng(2)
    for count, chosen, hidden, size, gated, bias in ((1, 1, 5, 3, True, False), (5, 2, 40, 36, True, True), (11, 4, 33, 70, False, True)):
        mixture = Mixture(format, count, hidden, size, gated, bias, seed=count)
        x = rng.standard_normal((13, hidden)).astype(F)
        ids, weights = choices(rng, len(x), count, chosen)
        plain = {"activation": "silu", "limit": 0.0, "shift": 0.0}
        wanted = mixture.wanted(x, ids, weights, **plain)
        alone = np.concatenate([mixture.computed(x[[t]], ids[[t]], weights[[t]], 1, 1, **plain) for t in range(len(x))])
        # another order of sums can move a rounded activation by a step
        np.testing.assert_allclose(alone, wanted, rtol=0, atol=2e-5 if format in ("f32", "bf16") else 2e-2)
        for M in HEIGHTS:
            for tokens, piece in ((2, 1), (13, 2), (13, 100)):
                together = mixture.computed(x[:tokens], ids[:tokens], weights[:tokens], M, piece, **plain)
                np.testing.assert_array_equal(together, alone[:tokens], err_msg=f"{count=} {M=} {tokens=} {piece=}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_limits_and_shifts(activation: str) -> None:
    rng = np.random.default_rng(3)
    mixture = Mixture("f32", 3, 20, 37, True, True, seed=9)
    x = 4 * rng.standard_normal((6, 20)).astype(F)
    ids, weights = choices(rng, 6, 3, 2)
    params = {"activation": activation, "limit": 1.25, "shift": 1.0}
    np.testing.assert_allclose(mixture.computed(x, ids, weights, 2, 1, **params), mixture.wanted(x, ids, weights, **params), atol=5e-5)


def test_only_the_chosen_experts_are_read() -> None:
    """NaN in the others' weights and biases changes nothing."""
    rng = np.random.default_rng(4)
    mixture = Mixture("f32", 6, 20, 17, True, True, seed=5)
    x, ids, weights = rng.standard_normal((4, 20)).astype(F), np.array([[1, 4]] * 4, np.int32), np.ones((4, 2), F)
    plain = {"activation": "silu", "limit": 0.0, "shift": 0.0}
    before = mixture.computed(x, ids, weights, 2, 1, **plain)
    for tensor, bias in ((mixture.up, mixture.up_bias), (mixture.down, mixture.down_bias)):
        assert bias is not None
        for expert in (0, 2, 3, 5):
            tensor.data.reshape(6, -1)[expert] = 255
            bias[expert] = np.nan
    np.testing.assert_array_equal(mixture.computed(x, ids, weights, 2, 1, **plain), before)


def test_rows_are_scaled() -> None:
    rng = np.random.default_rng(5)
    for columns in (1, 15, 16, 33):
        a, factor = rng.standard_normal((3, columns)).astype(F), rng.standard_normal((3, 4)).astype(F)
        out = np.full((3, columns + 1), np.nan, F)
        args = pack(
            ELEMENTWISE, header=0, outputs=0, a=address(a), a_stride=a.strides[0], b=address(factor) + 4, b_stride=factor.strides[0],
            out=address(out), out_stride=out.strides[0], columns=columns, value=0,
        )  # fmt: skip
        call(kernel("elementwise.scale_rows"), args, range(3))
        np.testing.assert_array_equal(out[:, :-1], a * factor[:, 1:2])
        assert np.isnan(out[:, -1]).all()


def test_kernels_call_nothing() -> None:
    names = [("route.before",), ("route.after",), ("experts.group",), ("experts.place",), ("experts.combine",)]
    names += [("experts.activate", "silu", True, True), ("experts.int4", max(HEIGHTS)), ("elementwise.scale_rows",)]
    # LLVM makes these out of loops; emit.ALLOWED has them
    found = {name: [c for c in kernel(*name).calls() if "mem" not in c] for name in names}
    assert found == {name: [] for name in names}
