"""Choices of experts by expert, in the simulator: who is in which block, and products with the bits of one choice at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_simulated_linear import Array, F, packed, product, quantized, start

from llmcli.backends.cuda import weights
from llmcli.backends.cuda.kernels import experts, groups
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor

COUNT, CHOSEN, TOKENS, MOST = 5, 2, 21, 24


def choices(rng: np.random.Generator) -> Array:
    """[TOKENS, CHOSEN] different experts for each token: number 3 for most of them, more than a block holds, and number 1 for nobody."""
    ids = np.array([[3, rng.choice([0, 2, 4])] for _ in range(TOKENS)], np.int32)
    ids[:2] = [[4, 0], [0, 2]]
    ids[::3] = ids[::3, ::-1]
    return ids


def listed(ids: Array) -> Array:
    """What the kernel says of them."""
    found = np.full(groups.words(MOST * CHOSEN, COUNT), -99, np.int32)
    flat = np.concatenate([[-7], ids.reshape(-1)]).astype(np.int32)
    start(groups.group(MOST, CHOSEN, COUNT, np.array([len(ids)], np.int32), (flat, 1, CHOSEN), found))
    return found


@pytest.mark.parametrize("tokens", [TOKENS, 1])
def test_each_choice_is_in_one_block_of_its_expert(tokens: int) -> None:
    ids = choices(np.random.default_rng(1))[:tokens]
    found, order = listed(ids), groups.order_at(MOST * CHOSEN, COUNT)
    blocks = found[groups.HEADER :][: groups.EACH * found[0]].reshape(-1, groups.EACH)
    seen = []
    for expert, first, end in blocks:
        assert 0 < end - first <= groups.TOKENS
        own = found[order + first : order + end]
        assert (ids.reshape(-1)[own] == expert).all()
        seen += own.tolist()
    assert sorted(seen) == list(range(tokens * CHOSEN)) and (found[order + tokens * CHOSEN :] == -99).all()
    rest = found[groups.HEADER + groups.EACH * found[0] : order]
    assert (rest == -99).all() and len(blocks) <= groups.blocks(tokens * CHOSEN, COUNT)
    full = sum(-(-int(n) // groups.TOKENS) for n in np.bincount(ids.reshape(-1)))
    assert len(blocks) == full, "as few blocks as there can be"


@pytest.mark.parametrize(("format", "columns", "per_row"), [("int4", 300, CHOSEN), ("int4_offset", 40, 1), ("int8", 70, CHOSEN)])
def test_products_by_group_have_the_bits_of_one_choice(format: str, columns: int, per_row: int) -> None:
    rng = np.random.default_rng(2)
    rows, ids = 35, choices(rng)
    tensor, data = packed(format, rng.standard_normal((COUNT, rows, columns)).astype(F))
    x = rng.standard_normal((TOKENS * CHOSEN // per_row, columns)).astype(F)
    bias = rng.standard_normal((COUNT, rows)).astype(F)
    out = np.full((MOST * CHOSEN, rows + 3), np.nan, F)
    to: Any = out.reshape(-1), 2, rows + 3
    own, step = weights.place(format, rows, columns), np.array([TOKENS], np.int32)
    assert experts.grouped(format, MOST, COUNT)
    start(experts.by_group(format, own, MOST, CHOSEN, COUNT, per_row, step, data, quantized(x, len(x)), listed(ids), to, bias.reshape(-1)))
    size = formats.get(format).size(rows, columns)
    for expert in np.unique(ids):
        part = PackedTensor(format, (rows, columns), tensor.data[expert * size : (expert + 1) * size])
        mine = np.flatnonzero(ids.reshape(-1) == expert)
        np.testing.assert_array_equal(out[mine, 2 : rows + 2], product(part, x[mine // per_row]) + bias[expert])
    assert np.isnan(out[:, [0, 1, -1]]).all() and np.isnan(out[TOKENS * CHOSEN :]).all()


def test_what_goes_choice_by_choice() -> None:
    assert not experts.grouped("f16", 64, 8), "floats"
    assert not experts.grouped("int4", 8, 8) and experts.grouped("int4", 9, 8), "few tokens"
    assert not experts.grouped("int4", 64, groups.MOST + 1) and experts.grouped("int4", 64, groups.MOST), "more experts than are counted"
