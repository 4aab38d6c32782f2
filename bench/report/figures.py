"""The report's plots, drawn for a column as wide as a phone; each regime looks the same in all of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mixsize.bench.report.comparison import Point, mean_curve
from mixsize.bench.report.intervals import Estimate
from mixsize.bench.report.quantities import count, time, time_unit
from mixsize.display.figures import COLOURS, GRID, INK, MARKERS, new_figure

_WIDTH, _HEIGHT = 4.2, 3.0
_MAX_TICKS = 9
_LINES = ("-", "--", "-.", ":")
_MAX_LABEL = 30
# In points: of a letter, and of what stands around an entry in a legend.
_LETTER, _ENTRY, _GAP = 6.1, 36, 20
# In inches.
_LEGEND_ROW = 0.2
# What records say is text, never formulas.
_in_style = mpl.rc_context({"text.parse_math": False, "axes.labelcolor": INK, "text.color": INK})


@dataclass(frozen=True)
class Style:
    """How a regime is drawn."""

    colour: str
    marker: str
    line: str


@dataclass(frozen=True)
class Norms:
    """Norms of gradients at one size: mean and standard deviation, as drawn and after smoothing; None without."""

    mean: float
    std: float | None
    smoothed_mean: float | None
    smoothed_std: float | None


@dataclass(frozen=True)
class Duration:
    """Where a regime's seconds went: of training, run by run, and on average besides it."""

    training: Sequence[float]
    besides: float


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each regime; beyond seven, colours come again with other markers and lines."""
    rounds = [divmod(index, len(COLOURS)) for index in range(len(labels))]
    return {
        label: Style(COLOURS[place], MARKERS[(place + turn) % len(MARKERS)], _LINES[turn % len(_LINES)])
        for label, (turn, place) in zip(labels, rounds, strict=True)
    }


@_in_style
def draw_learning_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]], target: float, styles: Mapping[str, Style]
) -> Figure:
    """Accuracy over seconds of training: thin lines are runs, thick ones the mean of their evaluations.

    Args:
        curves: label -> the points of each run.
        target: accuracy of the baseline as a fraction, drawn as a dotted line.
        styles: label -> how it is drawn.
    """
    figure, plot = _new()
    unit, name = time_unit(max(p.seconds or 0.0 for runs in curves.values() for points in runs for p in points))
    plot.axhline(100 * target, color=INK, linestyle=":", linewidth=1, marker="")
    for label, runs in curves.items():
        style = styles[label]
        for points in runs if len(runs) > 1 else ():
            times, accuracies = _seconds_and_percent(points, unit)
            plot.plot(times, accuracies, color=style.colour, alpha=0.35, linewidth=0.8, marker="")
        means = mean_curve(runs)
        times, accuracies = _seconds_and_percent(means, unit)
        # Enough markers to tell lines apart, not so many that they hide them.
        plot.plot(times, accuracies, markevery=max(1, len(means) // 8), **_line(style))
    plot.set_xlim(left=0)
    plot.set_xlabel(f"training time, {name}")
    _label_accuracy(plot)
    _legend(figure, {label: _handle(styles[label]) for label in curves})
    return figure


@_in_style
def draw_accuracy_by_size(
    own: Mapping[str, Mapping[int, Estimate]],
    calibrated: Mapping[str, Mapping[int, Estimate]],
    base_px: int,
    styles: Mapping[str, Style],
) -> Figure:
    """Accuracy over the image side evaluated at, with intervals; a dotted line at the base's side.

    Args:
        own: label -> side in pixels -> accuracy as a fraction, with the network's own batch-norm statistics.
        calibrated: likewise with calibrated ones; drawn with dashes and hollow markers.
        base_px: side that the fixed-size training has.
        styles: label -> how it is drawn.
    """
    labels = [label for label in styles if own.get(label) or calibrated.get(label)]
    figure, plot = _new()
    sizes = sorted({size for kind in (own, calibrated) for by_size in kind.values() for size in by_size})
    plot.axvline(base_px, color=INK, linestyle=":", linewidth=1, marker="")
    # Regimes stand side by side at each size, so that one's interval does not hide another's.
    gap = 0.012 * (sizes[-1] - sizes[0])
    shifts = {label: (index - (len(labels) - 1) / 2) * gap for index, label in enumerate(labels)}
    places = {label: {size: size + shift for size in sizes} for label, shift in shifts.items()}
    _lines_over(plot, places, own, calibrated, styles, intervals=True)
    step = math.ceil(len(sizes) / _MAX_TICKS)
    plot.set_xticks(sizes[::step], [str(size) for size in sizes[::step]])
    plot.set_xlabel("image size at evaluation, px")
    _label_accuracy(plot)
    _legend(figure, {label: _handle(styles[label]) for label in labels} | _statistics_key(calibrated))
    return figure


@_in_style
def draw_accuracy_by_gflops(
    own: Mapping[str, Mapping[int, Estimate]],
    calibrated: Mapping[str, Mapping[int, Estimate]],
    gflops: Mapping[str, Mapping[int, float]],
    styles: Mapping[str, Style],
) -> Figure:
    """Accuracy over the computation of one image's forward pass, on a logarithmic axis.

    Args:
        own: label -> side in pixels -> accuracy as a fraction, with the network's own batch-norm statistics.
        calibrated: likewise with calibrated ones; drawn with dashes and hollow markers.
        gflops: label -> side in pixels -> 10^9 floating-point operations.
        styles: label -> how it is drawn.
    """
    labels = [label for label in styles if gflops.get(label)]
    figure, plot = _new()
    _lines_over(plot, gflops, own, calibrated, styles, intervals=False)
    plot.set_xscale("log")
    values = [value for by_size in gflops.values() for value in by_size.values()]
    wide = max(values) / min(values) > 30
    plot.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set_xlabel("GFLOPs of one image's forward pass")
    _label_accuracy(plot)
    _legend(figure, {label: _handle(styles[label]) for label in labels} | _statistics_key(calibrated))
    return figure


@_in_style
def draw_steps(steps: Mapping[str, Sequence[float]], baseline: str, styles: Mapping[str, Style]) -> Figure:
    """Optimisation steps of each regime, and their ratio to the baseline's.

    Args:
        steps: label -> of each run.
        baseline: a label among them.
        styles: label -> how it is drawn.
    """
    means = {label: statistics.fmean(of_label) for label, of_label in steps.items()}
    figure, plot = _new_bars(len(means))
    for row, (label, mean) in enumerate(means.items()):
        plot.barh(row, mean, height=0.36, color=styles[label].colour)
        _above(plot, row, label, f"{mean:,.0f}{'' if label == baseline else _of(mean, means[baseline])}")
    plot.set_xlabel("optimisation steps")
    small = max(means.values()) < 100_000
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if small else count(value)))
    plot.xaxis.set_major_locator(MaxNLocator(5))
    return figure


@_in_style
def draw_times(durations: Mapping[str, Duration], baseline: str, styles: Mapping[str, Style]) -> Figure:
    """Time of training, run by run and on average, and behind it, pale, that of evaluation, calibration and set-up.

    Args:
        durations: label -> its times.
        baseline: a label among them.
        styles: label -> how it is drawn.
    """
    means = {label: statistics.fmean(found.training) for label, found in durations.items()}
    besides = any(found.besides for found in durations.values())
    several = any(len(found.training) > 1 for found in durations.values())
    figure, plot = _new_bars(len(means))
    longest = max(max(*found.training, means[label] + found.besides) for label, found in durations.items())
    unit, name = time_unit(longest)
    for row, (label, found) in enumerate(durations.items()):
        colour, mean = styles[label].colour, means[label]
        plot.barh(row, mean / unit, height=0.36, color=colour)
        plot.barh(row, found.besides / unit, left=mean / unit, height=0.36, color=colour, alpha=0.35)
        if len(found.training) > 1:
            places = [seconds / unit for seconds in found.training]
            plot.plot(places, [row] * len(places), linestyle="none", marker="o", **_dot())
        _above(plot, row, label, f"{time(mean)}{'' if label == baseline else _of(mean, means[baseline])}")
    plot.set_xlabel(f"time, {name}")
    plot.xaxis.set_major_locator(MaxNLocator(5))
    key: dict[str, Any] = {"training": Patch(color=INK)}
    if besides:
        key["evaluation etc."] = Patch(color=INK, alpha=0.35)
    if several:
        key["single runs"] = Line2D([], [], linestyle="none", marker="o", **_dot())
    _legend(figure, key)
    return figure


@_in_style
def draw_shapes(shares: Mapping[str, Mapping[int, float]], styles: Mapping[str, Style]) -> Figure:
    """How much of each regime's steps had which image side: the area of a disc is the share.

    Args:
        shares: label -> side in pixels -> share of the steps, from 0 to 1.
        styles: label -> how it is drawn.
    """
    figure, plot = _new_bars(len(shares), row_height=0.85)
    sizes = sorted({size for by_size in shares.values() for size in by_size})
    largest = 620 / max(1.0, len(sizes) / 6) ** 2 / max(max(by_size.values()) for by_size in shares.values())
    for row, (label, by_size) in enumerate(shares.items()):
        places = [sizes.index(size) for size in by_size]
        areas = [largest * share for share in by_size.values()]
        plot.scatter(places, [row] * len(places), s=areas, color=styles[label].colour, marker="o", zorder=3)
        plot.text(-0.6, row - 0.3, _short(label), ha="left", va="bottom", fontweight="bold")
        for place, share in zip(places, by_size.values(), strict=True):
            if len(sizes) <= _MAX_TICKS:
                plot.text(place, row + 0.33, f"{100 * share:.0f} %", ha="center", va="center", fontsize=8.5)
    step = math.ceil(len(sizes) / _MAX_TICKS)
    plot.set_xticks(range(0, len(sizes), step), [str(size) for size in sizes[::step]])
    plot.set_xlim(-0.65, len(sizes) - 0.35)
    plot.set_ylim(len(shares) - 0.5, -0.6)
    plot.set_xlabel("image size, px")
    return figure


@_in_style
def draw_gradient_norms(norms: Mapping[str, Mapping[int, Norms]], styles: Mapping[str, Style]) -> Figure:
    """Norm of the gradient by image side: mean and standard deviation over steps, before (filled) and after smoothing.

    Args:
        norms: label -> side in pixels -> its norms.
        styles: label -> how it is drawn.
    """
    smoothed = any(row.smoothed_mean is not None for by_size in norms.values() for row in by_size.values())
    figure, plot = _new()
    sizes = sorted({size for by_size in norms.values() for size in by_size})
    slots = len(norms) * (2 if smoothed else 1)
    pitch = 0.8 / slots
    slot = itertools.count()
    for label, by_size in norms.items():
        style = styles[label]
        rows = [(size, row.mean, row.std) for size, row in by_size.items()]
        _norms(plot, sizes, rows, (next(slot) - (slots - 1) / 2) * pitch, style, hollow=False)
        if smoothed:
            rows = [
                (size, row.smoothed_mean, row.smoothed_std)
                for size, row in by_size.items()
                if row.smoothed_mean is not None
            ]
            _norms(plot, sizes, rows, (next(slot) - (slots - 1) / 2) * pitch, style, hollow=True)
    # Sizes are apart from each other: bars of neighbours are not mistaken for one size's.
    for place in range(1, len(sizes)):
        plot.axvline(place - 0.5, color=GRID, linewidth=0.8, marker="")
    plot.grid(visible=False, axis="x")
    step = math.ceil(len(sizes) / _MAX_TICKS)
    plot.set_xticks(range(0, len(sizes), step), [str(size) for size in sizes[::step]])
    plot.set_xlim(-0.5, len(sizes) - 0.5)
    plot.set_ylim(bottom=0)
    plot.set_xlabel("image size, px")
    plot.set_ylabel("L2 norm of the gradient")
    key = {label: _handle(styles[label], line=False) for label in norms}
    if smoothed:
        key |= {"before smoothing": _key_marker(INK), "after smoothing": _key_marker("white")}
    _legend(figure, key)
    return figure


def _new() -> tuple[Figure, Axes]:
    figure, (plot,) = new_figure(width=_WIDTH, height=_HEIGHT)
    return figure, plot


def _new_bars(rows: int, row_height: float = 0.52) -> tuple[Figure, Axes]:
    figure, (plot,) = new_figure(width=_WIDTH, height=0.6 + row_height * rows)
    plot.set_yticks([])
    plot.spines["left"].set_visible(False)
    plot.grid(visible=False, axis="y")
    plot.set_ylim(rows - 0.65, -0.75)
    return figure, plot


def _label_accuracy(plot: Axes) -> None:
    """Name the axis, and keep it to what an accuracy can be; intervals of few seeds go far beyond."""
    low, high = plot.get_ylim()
    # Markers at its ends stay whole.
    plot.set_ylim(max(low, -2), min(high, 102))
    plot.set_ylabel("top-1 accuracy, %")


def _lines_over(
    plot: Axes,
    places: Mapping[str, Mapping[int, float]],
    own: Mapping[str, Mapping[int, Estimate]],
    calibrated: Mapping[str, Mapping[int, Estimate]],
    styles: Mapping[str, Style],
    intervals: bool,
) -> None:
    for label, where in places.items():
        for found, hollow in ((own.get(label, {}), False), (calibrated.get(label, {}), True)):
            sizes = [size for size in found if size in where]
            values = [found[size] for size in sizes]
            below = [value.mean - value.low if intervals and value.low is not None else 0.0 for value in values]
            style = _line(styles[label])
            if hollow:
                style |= {"linestyle": "--", "markerfacecolor": "white"}
            plot.errorbar(
                [where[size] for size in sizes],
                [100 * value.mean for value in values],
                yerr=[100 * half for half in below] if any(below) else None,
                elinewidth=0.9,
                capsize=2.5,
                **style,
            )


def _norms(
    plot: Axes, sizes: Sequence[int], rows: Sequence[tuple[int, float, float | None]], shift: float, style: Style,
    hollow: bool,
) -> None:  # fmt: skip
    plot.errorbar(
        [sizes.index(size) + shift for size, _, _ in rows],
        [mean for _, mean, _ in rows],
        yerr=[std or 0.0 for _, _, std in rows],
        linestyle="none",
        marker=style.marker,
        markersize=5,
        color=style.colour,
        markerfacecolor="white" if hollow else style.colour,
        elinewidth=1,
        capsize=2.5,
    )


def _seconds_and_percent(points: Sequence[Point], unit: float) -> tuple[list[float], list[float]]:
    known = [(point.seconds / unit, 100 * point.accuracy) for point in points if point.seconds is not None]
    return [seconds for seconds, _ in known], [accuracy for _, accuracy in known]


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "marker": style.marker, "linestyle": style.line, "markersize": 5, "linewidth": 1.6}


def _dot() -> dict[str, Any]:
    return {"markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 0.9}


def _handle(style: Style, line: bool = True) -> Line2D:
    return Line2D([], [], **{**_line(style), "linestyle": style.line if line else "none"})


def _key_marker(face: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker="o", markersize=5, color=INK, markerfacecolor=face)


def _statistics_key(calibrated: Mapping[str, Any]) -> dict[str, Line2D]:
    if not calibrated:
        return {}
    shared: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 5, "linewidth": 1.6}
    return {
        "own batch norm": Line2D([], [], **shared),
        "calibrated": Line2D([], [], **shared, linestyle="--", markerfacecolor="white"),
    }


def _above(plot: Axes, row: int, label: str, value: str) -> None:
    """The name of a bar, and its value, on the line above it."""
    plot.annotate(
        f"{_short(label)}  ",
        (0, row - 0.24),
        xycoords=("axes fraction", "data"),
        ha="left",
        va="bottom",
        fontweight="bold",
    )
    plot.annotate(value, (1, row - 0.24), xycoords=("axes fraction", "data"), ha="right", va="bottom")


def _of(value: float, baseline: float) -> str:
    return f"  ({value / baseline:.2f}x)" if baseline else ""


def _legend(figure: Figure, entries: Mapping[str, Any]) -> None:
    """Below the axes, where it hides nothing; the figure grows by its height."""
    names = [_short(name) for name in entries]
    fitting = int((72 * _WIDTH + _GAP) // (_LETTER * max(map(len, names)) + _ENTRY + _GAP))
    columns = max(1, min(3, fitting))
    figure.set_figheight(figure.get_figheight() + 0.1 + _LEGEND_ROW * math.ceil(len(names) / columns))
    legend = figure.legend(
        list(entries.values()),
        # matplotlib before 3.10 leaves out what begins with an underscore: names are put in afterwards.
        [str(index) for index in range(len(names))],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _short(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL // 2]}…{label[-_MAX_LABEL // 2 + 1 :]}"
