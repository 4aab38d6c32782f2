"""Means with 95 % confidence intervals, and differences of two means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Not scipy.stats: its intervals are NaN where all values are equal, as the steps of several seeds are.
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its confidence interval, which are None for a single value."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """One mean minus another; ``paired`` where values of the same seed were subtracted from each other."""

    paired: bool

    @property
    def shown(self) -> bool | None:
        """Whether zero lies outside the interval; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, ``no difference shown`` or ``one seed: no interval``."""
        if self.shown is None:
            return "one seed: no interval"
        if not self.shown:
            return "no difference shown"
        return "higher" if self.mean > 0 else "lower"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % confidence interval, ``mean ± t(n - 1) * s / sqrt(n)``; needs at least one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, None, None)
    half = _half_width(statistics.variance(values) / n, n - 1)
    return Estimate(mean, mean - half, mean + half)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Mean of some runs minus the mean of the baseline's, each given as seed -> value.

    With the same seeds on both sides the interval is Student's over the differences of each seed, since runs of one
    seed start from the same weights. Otherwise it is Welch's, for independent samples of unequal variance.
    """
    if values.keys() == baseline.keys():
        found = estimate([values[seed] - baseline[seed] for seed in values])
        return Difference(found.mean, found.low, found.high, paired=True)
    mean = statistics.fmean(values.values()) - statistics.fmean(baseline.values())
    if min(len(values), len(baseline)) < 2:
        return Difference(mean, None, None, paired=False)
    # Squared standard errors of the two means and their degrees of freedom (Welch 1947).
    errors = [(statistics.variance(side.values()) / len(side), len(side) - 1) for side in (values, baseline)]
    squared = sum(error for error, _ in errors)
    freedom = squared**2 / sum(error**2 / degrees for error, degrees in errors) if squared else 1
    half = _half_width(squared, freedom)
    return Difference(mean, mean - half, mean + half, paired=False)


def _half_width(squared_error: float, degrees_of_freedom: float) -> float:
    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(squared_error)
