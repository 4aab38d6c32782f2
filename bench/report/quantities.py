"""Measured quantities as text: times, counts and percentages with their intervals or spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mixsize.bench.report.intervals import Estimate

#: Stands for a missing value.
NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SECONDS = ((2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, with the standard deviation of the sample where there is more than one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit that suits a time: its seconds and its symbol."""
    return next((unit, name) for least, unit, name in _SECONDS if seconds >= least)


def time(seconds: float) -> str:
    """A time to three significant digits."""
    unit, name = time_unit(seconds)
    return f"{digits(seconds / unit)} {name}"


def count(value: float, unit: str = "") -> str:
    """A large number with an SI prefix."""
    for least, symbol in _COUNTS:
        if abs(value) >= least:
            return f"{digits(value / least)} {symbol}{unit}"
    return f"{value:,.0f} {unit}".rstrip()


def digits(value: float) -> str:
    """Three significant digits; whole numbers from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")


def percent(fraction: float) -> str:
    """A fraction in per cent, without the sign."""
    return f"{100 * fraction:.1f}"


def percent_interval(found: Estimate | None) -> str:
    """A mean accuracy in per cent with its interval, which is cut off at 0 and 100 %."""
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return percent(found.mean)
    return f"{percent(found.mean)} ({percent(max(0.0, found.low))} to {percent(min(1.0, found.high))})"


def points_interval(found: Estimate) -> str:
    """A difference of fractions in percentage points with its interval."""
    mean = signed(100 * found.mean)
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({signed(100 * found.low)} to {signed(100 * found.high)})"


def signed(value: float) -> str:
    """One decimal with its sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def ratio(value: float, baseline: float) -> str:
    """A value as a multiple of the baseline's."""
    return f"{value / baseline:.2f}x" if baseline else NONE
