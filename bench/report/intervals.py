"""Means with 95 % confidence intervals, and differences of two means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; None for a single value, which has none.
        high: upper end, likewise.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """One mean minus another, with its confidence interval.

    Attributes:
        mean: of the differences.
        low: lower end of the interval; None where one side has a single value.
        high: upper end, likewise.
        paired: whether values of the same seed were subtracted from each other.
    """

    mean: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def shown(self) -> bool | None:
        """Whether zero lies outside the interval; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What may be said: ``higher``, ``lower``, ``no difference shown`` or ``one seed: no interval``."""
        if self.shown is None:
            return "one seed: no interval"
        if not self.shown:
            return "no difference shown"
        return "higher" if self.mean > 0 else "lower"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % confidence interval, ``mean ± t(n - 1) * s / sqrt(n)``.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values: an estimate needs at least one")
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = _half_width(statistics.variance(values) / n, n - 1)
    return Estimate(mean, mean - half, mean + half, n)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """How far the mean of some runs is above the baseline's.

    Where both have the same seeds, the differences are taken seed by seed (paired t interval): runs of one seed start
    from the same weights. Otherwise the interval is Welch's, for independent samples with variances of their own.

    Args:
        values: seed -> value.
        baseline: likewise.

    Raises:
        ValueError: no values on one side.
    """
    if not values or not baseline:
        raise ValueError("values and baseline: a difference needs at least one of each")
    if values.keys() == baseline.keys():
        found = estimate([values[seed] - baseline[seed] for seed in values])
        return Difference(found.mean, found.low, found.high, paired=True)
    mean = statistics.fmean(values.values()) - statistics.fmean(baseline.values())
    if min(len(values), len(baseline)) < 2:
        return Difference(mean, None, None, paired=False)
    # Squared standard errors of the two means, and their degrees of freedom (Welch 1947).
    errors = [(statistics.variance(side.values()) / len(side), len(side) - 1) for side in (values, baseline)]
    squared = sum(error for error, _ in errors)
    freedom = squared**2 / sum(error**2 / degrees for error, degrees in errors) if squared else 1
    half = _half_width(squared, freedom)
    return Difference(mean, mean - half, mean + half, paired=False)


def _half_width(squared_error: float, degrees_of_freedom: float) -> float:
    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(squared_error)
