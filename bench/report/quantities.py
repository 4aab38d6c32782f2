"""Measured quantities in words: times, counts, percentages, with their intervals."""

from __future__ import annotations

from mixsize.bench.report.intervals import Difference, Estimate

#: What stands where there is no value.
NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SECONDS = ((2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit that such a time is best told in: its seconds, and its symbol."""
    return next((unit, name) for least, unit, name in _SECONDS if seconds >= least)


def time(seconds: float) -> str:
    """A time to three significant digits."""
    unit, name = time_unit(seconds)
    return f"{digits(seconds / unit)} {name}"


def time_span(low: float, high: float) -> str:
    """From one time to another, in the longer one's unit."""
    unit, name = time_unit(high)
    return f"{digits(low / unit) if low else 0} to {digits(high / unit)} {name}"


def count_span(low: float, high: float) -> str:
    """From one large number to another."""
    return f"{count(low)} to {count(high)}"


def count(value: float, unit: str = "") -> str:
    """A large number in thousands, millions and so on, in the SI's symbols."""
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
    """A mean of accuracies in per cent, and its interval where it has one, within what an accuracy can be."""
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return percent(found.mean)
    return f"{percent(found.mean)} ({percent(max(0.0, found.low))} to {percent(min(1.0, found.high))})"


def points_interval(found: Difference | None) -> str:
    """A difference of fractions in percentage points, and its interval where it has one."""
    if found is None:
        return NONE
    mean = signed(100 * found.mean)
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({signed(100 * found.low)} to {signed(100 * found.high)})"


def signed(value: float) -> str:
    """One decimal, with its sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def ratio(value: float, baseline: float) -> str:
    """How many times the baseline's."""
    return f"{value / baseline:.2f}x" if baseline else NONE
