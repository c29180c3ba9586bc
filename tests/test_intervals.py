"""Intervals against tables, against NumPy, and by how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmcli.intervals import BLOCK, LEAST, Series, _student, wilson


@pytest.mark.parametrize(
    ("right", "trials", "low", "high"), [(10, 100, 0.0552, 0.1744), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilson(right: int, trials: int, low: float, high: float) -> None:
    """Values of the literature (Newcombe 1998, Brown, Cai and DasGupta 2001)."""
    assert wilson(right, trials) == pytest.approx((low, high), abs=6e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("freedom", "value"), [(7, 2.36462), (9, 2.26216), (20, 2.08596), (60, 2.00030), (10_000, 1.96020)])
def test_student(freedom: int, value: float) -> None:
    assert _student(freedom) == pytest.approx(value, abs=1e-3)


def neighbours(rng: np.random.Generator, count: int, weight: float = 0.9) -> np.ndarray:
    """Numbers of mean 1 in which each depends on the one before."""
    noise, found, last = rng.normal(0, 1, count), np.empty(count), 0.0
    for i, value in enumerate(noise):
        found[i] = last = weight * last + value
    return 1.0 + found


def test_batch_means_are_those_of_numpy() -> None:
    values = neighbours(np.random.default_rng(0), 20 * BLOCK + 17)
    series = Series()
    for part in np.array_split(values, 31):
        series.add(part.tolist())
    means = values[: 20 * BLOCK].reshape(20, BLOCK).mean(1)
    assert series.mean == pytest.approx(values.mean())
    assert series.error == pytest.approx(means.std(ddof=1) * math.sqrt(BLOCK / len(values)))
    assert series.half == pytest.approx(2.09302 * series.error, rel=1e-3)


def test_an_interval_of_dependent_numbers_holds_the_mean_as_often_as_it_says() -> None:
    rng, held, naive = np.random.default_rng(1), 0, 0
    for _ in range(200):
        values = neighbours(rng, 16 * BLOCK)
        series = Series()
        series.add(values.tolist())
        held += abs(series.mean - 1) < series.half
        naive += abs(values.mean() - 1) < 1.96 * values.std() / math.sqrt(len(values))
    assert 180 <= held <= 199
    assert naive < 120  # as if tokens were independent


def test_shares_of_dependent_trials() -> None:
    rng = np.random.default_rng(2)
    alone, together = Series(), Series()
    alone.add((rng.random(40 * BLOCK) < 0.9).astype(float).tolist())
    together.add(np.repeat(rng.random(40 * 8) < 0.9, BLOCK // 8).astype(float).tolist())
    assert alone.share() == pytest.approx(wilson(alone.total, alone.count), abs=2e-3)
    low, high = together.share()
    assert high - low > 3 * (alone.share()[1] - alone.share()[0])
    same = Series()
    same.add([1.0] * (LEAST * BLOCK))
    assert same.share() == wilson(LEAST * BLOCK, LEAST * BLOCK) and same.half == 0.0


def test_too_few_numbers_say_nothing() -> None:
    series = Series()
    assert math.isnan(series.mean)
    series.add([1.0] * (LEAST * BLOCK - 1))
    assert series.mean == 1.0 and math.isnan(series.half) and all(map(math.isnan, series.share()))
