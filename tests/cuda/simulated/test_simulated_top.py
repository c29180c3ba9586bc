"""`top` against the reference backend, with logits that are equal, infinite or not numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from steps import F, Operand, counts, random

from llmcli.backends.cuda.kernels.top import PIECE, STATISTICS, pieces, top
from llmcli.backends.reference import select

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered")  # kernels know of no warnings
Array = npt.NDArray[Any]


def run(logits: Array, keep: int) -> tuple[Array, Array, Array]:
    rows, vocab = logits.shape
    ranks = np.full((rows + 1) * pieces(vocab) * keep, -1, np.int64)
    statistics = np.full((rows + 1) * pieces(vocab) * STATISTICS, np.nan)
    ids, values = np.full((rows + 1) * keep, -1, np.int32), np.full((rows + 1) * keep, np.nan, F)
    stats, step = np.full((rows + 1) * 2, np.nan), counts(rows + 3, tuple(range(rows)))
    first, second = top(rows + 1, vocab)
    first[0][first[1], first[2]](step, *Operand.of(logits).args, vocab, keep, ranks, statistics)
    second[0][second[1], second[2]](step, ranks, statistics, pieces(vocab), keep, ids, values, stats)
    assert (ids[rows * keep :] == -1).all() and np.isnan(values[rows * keep :]).all() and np.isnan(stats[rows * 2 :]).all()
    return ids[: rows * keep].reshape(rows, -1), values[: rows * keep].reshape(rows, -1), stats[: rows * 2].reshape(rows, 2)


def by_sorting(logits: Array, keep: int) -> tuple[Array, Array]:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :keep]
    return ids, np.take_along_axis(logits, ids, 1)


@pytest.mark.parametrize("vocab, keep", [(1, 1), (50, 50), (PIECE + 1, 20), (4 * PIECE - 3, 7), (300, 256)])
def test_random_logits(vocab: int, keep: int) -> None:
    logits = random(2, vocab) * F(8)
    logits[1] = (logits[1] / 4).round(0)  # many are equal, and some are -0
    ids, values, stats = run(logits, keep)
    expected = by_sorting(logits, keep)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    plain = select.top(logits)
    np.testing.assert_allclose(stats, np.stack([plain[2], plain[3]], 1), rtol=1e-6, atol=1e-6)


def test_equal_logits_are_taken_by_ascending_id() -> None:
    logits = np.zeros((1, 3 * PIECE), F)
    logits[0, ::2] = -0.0
    logits[0, 2 * PIECE + 5] = 1
    ids, values, stats = run(logits, 9)
    assert ids[0].tolist() == [2 * PIECE + 5, *range(8)]
    np.testing.assert_allclose(stats[0, 0], np.log(3 * PIECE - 1 + np.e), rtol=1e-6)


def test_infinite_logits() -> None:
    logits = np.full((1, 2 * PIECE), -np.inf, F)
    logits[0, [3, PIECE - 1]] = 2.0, 2.0  # the second piece has none that counts
    ids, values, stats = run(logits, 4)
    assert ids[0].tolist() == [3, PIECE - 1, 0, 1]
    np.testing.assert_allclose(stats[0], (2 + np.log(2), np.log(2)), rtol=1e-6)


def test_what_is_not_a_number_is_at_the_ends_of_the_order() -> None:
    logits = random(1, PIECE + 20)
    logits[0, 7] = np.nan
    ids, values, stats = run(logits, 3)
    assert ids[0, 0] == 7 and ids[0, 1:].tolist() == by_sorting(logits, 2)[0][0].tolist()
    assert np.isnan(stats[0, 0])
