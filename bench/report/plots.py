"""The report's plots: accuracy over time, evaluation size and computation, each with the table of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mixsize.bench.report.comparison import Comparison, Point, learning_curve, mean_curve
from mixsize.bench.report.content import Plot, Table
from mixsize.bench.report.intervals import Estimate, estimate
from mixsize.bench.report.quantities import percent, percent_interval, time, time_unit
from mixsize.display.figures import COLOURS, INK, MARKERS, new_figure, with_plain_text
from mixsize.recipes.records.run_record import CALIBRATED, OWN

#: Label -> image side in pixels -> accuracy as a fraction.
BySize = Mapping[str, Mapping[int, Estimate]]

_LINES = ("-", "--", "-.", ":")
# Rows for each regime in the table of a learning curve.
_MAX_EVALUATIONS = 12
_DOTTED: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 1, "marker": ""}


def make_plots(found: Comparison, prefix: str) -> tuple[list[Plot], list[str]]:
    """The plots that the records allow, and for each of the others the reason why it is missing.

    Args:
        found: the comparison.
        prefix: of the plots' names.
    """
    plots = [accuracy_by_size(found, prefix)]
    left_out = []
    if any(run.curve for runs in found.runs.values() for run in runs):
        plots.insert(0, accuracy_over_time(found, prefix))
    else:
        left_out.append("Accuracy over training time: the records have no learning curves.")
    if any(run.macs for runs in found.runs.values() for run in runs):
        plots.append(accuracy_by_gmacs(found, prefix))
    else:
        left_out.append("Accuracy by computation: the records have no counts of multiply-accumulates.")
    return plots, left_out


def accuracies(found: Comparison, calibrated: bool) -> dict[str, dict[int, Estimate]]:
    """Label -> image side -> accuracy over seeds, for the regimes that were evaluated with such statistics."""
    by_label = {}
    for label, runs in found.runs.items():
        measured = [(run.calibrated_accuracy or {}) if calibrated else run.accuracy for run in runs]
        sizes = sorted({size for of_run in measured for size in of_run}, key=int)
        if sizes:
            by_label[label] = {
                int(size): estimate([of_run[size] for of_run in measured if size in of_run], found.eval_images)
                for size in sizes
            }
    return by_label


def accuracy_over_time(found: Comparison, prefix: str) -> Plot:
    """Accuracy over seconds of training."""
    curves = {
        found.named(label): [learning_curve(run, found.size_px) for run in runs] for label, runs in found.runs.items()
    }
    rows = [
        [label, f"{point.epochs:g}", f"{point.steps:,.0f}", time(point.seconds), percent(point.accuracy)]
        for label, runs in curves.items()
        for point in _thinned(mean_curve(runs))
    ]
    last = [
        f"{found.named(label)} ends at {percent(standing.estimate.mean)} %"
        for label, standing in found.end.standings.items()
        if standing.estimate
    ]
    return Plot(
        f"{prefix}accuracy-over-time",
        f"Accuracy over training time, {found.size_px} px{found.common_words}",
        f"Lines of top-1 accuracy over training time, one for each regime: {', '.join(last)}.",
        "Training time leaves out evaluations and set-up. Thick lines: mean of the seeds' evaluations; thin lines: "
        f"single runs; dotted: the final accuracy of {found.baseline}.",
        draw_learning_curves(curves, found.targets[None]),
        Table(
            f"Evaluations, mean over seeds{found.common_words}",
            ["regime", "epoch", "steps", "training time", "top-1, %"],
            rows,
        ),
    )


def accuracy_by_size(found: Comparison, prefix: str) -> Plot:
    """Accuracy over the image side evaluated at."""
    own, calibrated = accuracies(found, calibrated=False), accuracies(found, calibrated=True)
    base_px = found.runs[found.baseline][0].base_size_px
    sizes = sorted({size for kind in (own, calibrated) for by_size in kind.values() for size in by_size})
    rows = [
        [f"{label}{words}", *(percent_interval(by_size.get(size)) for size in sizes)]
        for label, words, by_size in _with_statistics(found, own, calibrated)
    ]
    best = [
        f"{label} is best at {max(by_size, key=lambda size: by_size[size].mean)} px with "
        f"{percent(max(value.mean for value in by_size.values()))} %"
        for label, by_size in (own or calibrated).items()
    ]
    return Plot(
        f"{prefix}accuracy-by-size",
        "Accuracy by evaluation size",
        f"Lines of top-1 accuracy over the image size at evaluation: {', '.join(best)}.",
        f"Bars: 95 % intervals, where there are several seeds. Dotted: {base_px} px, the size of fixed-size training. "
        + _lines(own, calibrated),
        draw_accuracy_by_size(own, calibrated, base_px, list(found.runs)),
        Table("Top-1 accuracy by evaluation size, %", ["regime", *(f"{size} px" for size in sizes)], rows),
    )


def accuracy_by_gmacs(found: Comparison, prefix: str) -> Plot:
    """Accuracy over the computation of one image's forward pass."""
    own, calibrated = accuracies(found, calibrated=False), accuracies(found, calibrated=True)
    gmacs = {
        label: {int(size): macs / 1e9 for size, macs in runs[0].macs.items()} for label, runs in found.runs.items()
    }
    own, calibrated = (
        {label: {s: value for s, value in by_size.items() if s in gmacs[label]} for label, by_size in kind.items()}
        for kind in (own, calibrated)
    )
    rows = [
        [f"{label}{words}", f"{size} px", f"{gmacs[label][size]:.4g}", percent_interval(value)]
        for label, words, by_size in _with_statistics(found, own, calibrated)
        for size, value in by_size.items()
    ]
    return Plot(
        f"{prefix}accuracy-by-gmacs",
        "Accuracy by computation",
        "Lines of top-1 accuracy over the computation of one image's forward pass, one point for each evaluation "
        "size; the table has the values.",
        "GMACs: billions of multiply-accumulates of one image's forward pass, which many papers call FLOPs. "
        + _lines(own, calibrated),
        draw_accuracy_by_gmacs(own, calibrated, gmacs, list(found.runs)),
        Table("Top-1 accuracy by computation", ["regime", "size", "GMACs", "top-1, %"], rows),
    )


@with_plain_text
def draw_learning_curves(curves: Mapping[str, Sequence[Sequence[Point]]], target: float) -> Figure:
    """Accuracy over seconds of training, for each label and run; the target is a dotted line."""
    figure, (plot,) = new_figure()
    unit, name = time_unit(max(point.seconds for runs in curves.values() for points in runs for point in points))
    plot.axhline(100 * target, **_DOTTED)
    for index, runs in enumerate(curves.values()):
        style = _style(index)
        for points in runs if len(runs) > 1 else ():
            plot.plot(*_seconds_and_percent(points, unit), color=style["color"], alpha=0.35, linewidth=0.8, marker="")
        means = mean_curve(runs)
        plot.plot(*_seconds_and_percent(means, unit), markevery=max(1, len(means) // 8), **style)
    plot.set_xlim(left=0)
    plot.set_xlabel(f"training time, {name}")
    _finish(figure, plot, list(curves))
    return figure


@with_plain_text
def draw_accuracy_by_size(own: BySize, calibrated: BySize, base_px: int, labels: Sequence[str]) -> Figure:
    """Accuracy over the image side with intervals; a dotted line at the size of fixed-size training."""
    figure, (plot,) = new_figure()
    plot.axvline(base_px, **_DOTTED)
    sizes = sorted({size for kind in (own, calibrated) for by_size in kind.values() for size in by_size})
    # Regimes stand side by side at each size, so that their intervals do not hide each other.
    gap = 0.012 * (sizes[-1] - sizes[0])
    for index, label in enumerate(labels):
        shift = (index - (len(labels) - 1) / 2) * gap
        for kind, hollow in ((own, False), (calibrated, True)):
            found = kind.get(label, {})
            below = [100 * (value.mean - value.low) if value.low is not None else 0.0 for value in found.values()]
            plot.errorbar(
                [size + shift for size in found],
                [100 * value.mean for value in found.values()],
                yerr=below if any(below) else None,
                elinewidth=0.9,
                capsize=2.5,
                **_style(index, hollow),
            )
    step = math.ceil(len(sizes) / 13)
    plot.set_xticks(sizes[::step])
    plot.set_xlabel("image size at evaluation, px")
    _finish(figure, plot, labels)
    return figure


@with_plain_text
def draw_accuracy_by_gmacs(
    own: BySize, calibrated: BySize, gmacs: Mapping[str, Mapping[int, float]], labels: Sequence[str]
) -> Figure:
    """Accuracy over the GMACs of each size, on a logarithmic axis."""
    figure, (plot,) = new_figure()
    for index, label in enumerate(labels):
        for kind, hollow in ((own, False), (calibrated, True)):
            found = kind.get(label, {})
            costs = [gmacs[label][size] for size in found]
            plot.plot(costs, [100 * value.mean for value in found.values()], **_style(index, hollow))
    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.set_xlabel("GMACs of one image's forward pass")
    _finish(figure, plot, labels)
    return figure


def _with_statistics(
    found: Comparison, own: BySize, calibrated: BySize
) -> list[tuple[str, str, Mapping[int, Estimate]]]:
    """Label, what follows it in a table, and accuracies: with own batch-norm statistics, then with calibrated ones."""
    return [
        (label, words, kind[label])
        for label in found.runs
        for kind, words in ((own, f", {OWN}"), (calibrated, f", {CALIBRATED}"))
        if label in kind
    ]


def _lines(own: BySize, calibrated: BySize) -> str:
    """Which lines are of which batch-norm statistics."""
    shown = [f"solid: {OWN}"] * bool(own) + [f"dashed and hollow: {CALIBRATED}"] * bool(calibrated)
    return f"{'; '.join(shown).capitalize()}."


def _style(index: int, hollow: bool = False) -> dict[str, Any]:
    """Line and marker of a regime; beyond seven regimes, colours repeat with other lines."""
    turn, place = divmod(index, len(COLOURS))
    style = {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)], "markersize": 5}
    if hollow:
        return style | {"linestyle": "--", "markerfacecolor": "white"}
    return style | {"linestyle": _LINES[turn % len(_LINES)]}


def _finish(figure: Figure, plot: Axes, labels: Sequence[str]) -> None:
    """Label the accuracy, limit it to its range, and put a legend below the plot."""
    low, high = plot.get_ylim()
    # Intervals of few seeds reach far beyond; the margin keeps markers at 0 and 100 % whole.
    plot.set_ylim(max(low, -2), min(high, 102))
    plot.set_ylabel("top-1 accuracy, %")
    handles = [Line2D([], [], **_style(index)) for index in range(len(labels))]
    figure.set_figheight(figure.get_figheight() + 0.25 * math.ceil(len(labels) / 3))
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _seconds_and_percent(points: Sequence[Point], unit: float) -> tuple[list[float], list[float]]:
    return [point.seconds / unit for point in points], [100 * point.accuracy for point in points]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Evenly chosen points with the last among them."""
    apart = max(1, math.ceil(len(points) / _MAX_EVALUATIONS))
    return points[::-1][::apart][::-1]
