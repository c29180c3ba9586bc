"""How sure a measured share or mean is: 95% intervals. Sums and square roots only; it knows no model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z = 1.959963984540054
"""The normal distribution has 95% between -Z and Z."""
BLOCK = 256
"""Neighbours in a text depend on each other: so many of them are one observation."""
LEAST = 8
"""Blocks below which their spread says nothing."""


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a share, for independent trials (E. B. Wilson, 1927). Without trials: all is possible."""
    if not trials:
        return 0.0, 1.0
    share, square = successes / trials, Z * Z / trials
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


@dataclass
class Series:
    """The mean of numbers that come in order, and how far it may be off, by batch means: blocks of 256 neighbours are taken as
    independent, and the spread of their means, with Student's quantile, gives the interval. Memory does not grow."""

    count: int = 0
    total: float = 0.0
    _inside: int = 0
    _sum: float = 0.0
    """Of the block that is not full yet."""
    _blocks: int = 0
    _mean: float = 0.0
    _squares: float = 0.0
    """Sum of squared deviations of the blocks' means (Welford's way)."""

    def add(self, values: Iterable[float]) -> None:
        """The next numbers."""
        for value in values:
            self.count += 1
            self.total += value
            self._inside += 1
            self._sum += value
            if self._inside == BLOCK:
                self._close()

    def _close(self) -> None:
        self._blocks += 1
        value = self._sum / BLOCK
        change = value - self._mean
        self._mean += change / self._blocks
        self._squares += change * (value - self._mean)
        self._inside, self._sum = 0, 0.0

    @property
    def mean(self) -> float:
        """NaN for no numbers."""
        return self.total / self.count if self.count else math.nan

    @property
    def error(self) -> float:
        """The mean's standard error; NaN for fewer than 8 full blocks."""
        if self._blocks < LEAST:
            return math.nan
        variance = self._squares / (self._blocks - 1)
        return math.sqrt(variance * BLOCK / self.count)

    @property
    def half(self) -> float:
        """Half of the mean's interval; NaN for fewer than 8 full blocks."""
        return _student(self._blocks - 1) * self.error

    def share(self) -> tuple[float, float]:
        """The interval of the mean of zeros and ones: Wilson's, for as many independent trials as would scatter like the blocks.
        (NaN, NaN) for fewer than 8 full blocks."""
        error, mean = self.error, self.mean
        if math.isnan(error):
            return math.nan, math.nan
        plain = mean * (1 - mean) / self.count
        trials = self.count * min(1.0, plain / error**2) if error else self.count
        return wilson(mean * trials, trials)


def _student(freedom: int) -> float:
    """Student's 97.5% quantile, by its expansion in 1/freedom (Abramowitz and Stegun 26.7.5): right to 0.001 from 7 on."""
    if freedom < 1:
        return math.nan
    terms = (Z, (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return math.fsum(term / math.pow(freedom, power) for power, term in enumerate(terms))
