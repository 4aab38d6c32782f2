"""Means with 95 % confidence intervals, and differences of two means.

The mean accuracy of n seeds on N test images has two errors. Other seeds give other networks: with the variance s^2 of
the seeds' accuracies, s^2 / n. Other test images give another accuracy, and more seeds do not help, because all of them
are evaluated on the same images. Let q be the probability, over seeds, that an image is classified correctly, and p its
mean over images. By the law of total variance

    Var(mean accuracy) = E(s^2) / n + Var(q) / N,    Var(q) <= p (1 - p).

The second part is taken as p (1 - p) / N, the binomial error in full: an upper bound, and the exact value where every
seed errs on the same images. The half-widths of the two parts, Student's and the normal distribution's, are added in
quadrature (Zou and Donner 2008), so that the interval is never narrower than that of the seeds alone.

For a difference of two regimes, Var(q) becomes Var(q - q') = Var(q) + Var(q') - 2 Cov(q, q'). The records do not say
which images a network classified correctly, so the covariance is unknown. It is positive where both networks find the
same images hard. It is taken as zero, which gives p (1 - p) / N + p' (1 - p') / N: again an upper bound. Seeds that
both regimes share are paired all the same, which concerns s^2 alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Not scipy.stats: its intervals are NaN where all values are equal, as the steps of several seeds are.
from scipy.special import stdtrit

#: Quantile at the upper end of an interval: 95 % lie between it and its mirror image.
CONFIDENT = 0.975
#: Probability with which the seeds that a verdict asks for show a difference of the measured size.
POWER = 0.8
#: More seeds than this are not asked for.
MOST_SEEDS = 100


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its confidence interval, which are None for a single value."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """One mean minus another.

    Attributes:
        paired: values of the same seed were subtracted from each other.
        seeds: values on the side that has fewer.
        enough: about as many seeds of each would show a difference of this size; None if it was shown, if there is no
            interval, or if `MOST_SEEDS` would not.
    """

    paired: bool
    seeds: int
    enough: int | None = None

    @property
    def shown(self) -> bool | None:
        """Whether zero lies outside the interval; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, ``3 seeds cannot tell; about 12 would`` or ``one seed: no interval``."""
        if self.shown is None:
            return "one seed: no interval"
        if self.shown:
            return "higher" if self.mean > 0 else "lower"
        more = f"{MOST_SEEDS} would not either" if self.enough is None else f"about {self.enough} would"
        return f"{self.seeds} seeds cannot tell; {more}"


def estimate(values: Sequence[float], images: int | None = None) -> Estimate:
    """Mean and 95 % confidence interval; needs at least one value.

    Args:
        values: one for each seed.
        images: that accuracies, as fractions, were measured on; None for other quantities, whose interval is Student's
            over the seeds alone.
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, None, None)
    half = _half_width([statistics.variance(values)], [n], _test_variance([mean], images), CONFIDENT)
    return Estimate(mean, mean - half, mean + half)


def difference(values: Mapping[int, float], baseline: Mapping[int, float], images: int | None = None) -> Difference:
    """Mean of some runs minus the mean of the baseline's, each given as seed -> value.

    With the same seeds on both sides the spread is that of the differences of each seed, since runs of one seed start
    from the same weights. Otherwise it is Welch's, for independent samples of unequal variance.

    Args:
        values: of the runs.
        baseline: of the baseline's runs.
        images: as for :func:`estimate`; both sides were measured on the same ones.
    """
    paired = values.keys() == baseline.keys()
    means = [statistics.fmean(side.values()) for side in (values, baseline)]
    samples = (
        [[values[seed] - baseline[seed] for seed in values]] if paired else [[*values.values()], [*baseline.values()]]
    )
    mean, seeds = means[0] - means[1], min(map(len, samples))
    if seeds < 2:
        return Difference(mean, None, None, paired, seeds)
    variances, test = [statistics.variance(sample) for sample in samples], _test_variance(means, images)
    half = _half_width(variances, [len(sample) for sample in samples], test, CONFIDENT)
    enough = seeds_needed(mean, variances, test, more_than=seeds) if abs(mean) <= half else None
    return Difference(mean, mean - half, mean + half, paired, seeds, enough)


def seeds_needed(mean: float, variances: Sequence[float], test: float = 0.0, more_than: int = 1) -> int | None:
    """Seeds that show a difference with 80 % power at the 5 % level; None beyond `MOST_SEEDS`.

    Args:
        mean: the difference.
        variances: between seeds: of the differences, for paired seeds, or of the two sides.
        test: squared error of the test set, which does not shrink with seeds.
        more_than: the least number of seeds to consider is one more.
    """
    for n in range(more_than + 1, MOST_SEEDS + 1):
        if _half_width(variances, [n] * len(variances), test, CONFIDENT, POWER) <= abs(mean) > 0:
            return n
    return None


def _test_variance(accuracies: Sequence[float], images: int | None) -> float:
    """Squared binomial error of a sum or difference of accuracies on as many images, as if independent."""
    if images is None:
        return 0.0
    # With two hits and two misses more (Agresti and Coull 1998): no error of few images is as good as none.
    shares = [(accuracy * images + 2) / (images + 4) for accuracy in accuracies]
    return sum(share * (1 - share) for share in shares) / images


def _half_width(variances: Sequence[float], seeds: Sequence[int], test: float, *quantiles: float) -> float:
    """Standard errors between seeds and of the test set, each times the sum of its quantiles, in quadrature."""
    parts = [(variance / n, n - 1) for variance, n in zip(variances, seeds, strict=True)]
    squared = sum(part for part, _ in parts)
    scatter = sum(part**2 / freedom for part, freedom in parts)
    # Of Welch 1947; n - 1 for a single part.
    freedom = squared**2 / scatter if scatter else 1
    students, normal = (sum(stdtrit(degrees, quantile) for quantile in quantiles) for degrees in (freedom, math.inf))
    return math.hypot(students * math.sqrt(squared), normal * math.sqrt(test))
