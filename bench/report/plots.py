"""The report's plots: what each is drawn from, its table, and how it is to be read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from mixsize.bench.report import figures as draw
from mixsize.bench.report.comparison import Comparison, Point, learning_curve, mean_curve
from mixsize.bench.report.content import Plot, Table
from mixsize.bench.report.intervals import Estimate, estimate
from mixsize.bench.report.quantities import NONE, count, percent, percent_interval, ratio, time
from mixsize.recipes.records.run_record import GradientNormRow, RunRecord

_MISSING_IN_OLD = "records of version 3 have them, these do not"
# Rows of a learning curve's table, for each regime.
_MAX_EVALUATIONS = 12


def _accuracy_over_time_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    curves = {label: [learning_curve(run, found.size_px) for run in runs] for label, runs in found.runs.items()}
    if not any(len(points) > 1 for runs in curves.values() for points in runs):
        return f"Accuracy over wall-clock time: no learning curves; {_MISSING_IN_OLD}."
    if any(point.seconds is None for runs in curves.values() for points in runs for point in points):
        return "Accuracy over wall-clock time: the time of training is not known for all runs."
    rows = [
        [label, f"{point.epochs:g}", f"{point.steps:,.0f}", time(point.seconds), percent(point.accuracy)]
        for label, runs in curves.items()
        for point in _thinned(mean_curve(runs))
        if point.epochs is not None and point.steps is not None and point.seconds is not None
    ]
    last = [
        f"{label} ends at {percent(standing.estimate.mean)} %"
        for label, standing in found.end.standings.items()
        if standing.estimate
    ]
    return Plot(
        f"{slug}accuracy-over-time",
        f"Accuracy over wall-clock time, {found.size_px} px",
        f"Lines of top-1 accuracy over training time, one for each regime: {', '.join(last)}.",
        "Time is that of training, without evaluations. Thick: mean of the seeds' evaluations; thin: single runs; "
        f"dotted: {found.baseline}'s accuracy at its end.",
        draw.draw_learning_curves(curves, found.targets[None], styles),
        Table("Evaluations, mean over seeds", ["regime", "epoch", "steps", "training time", "top-1, %"], rows),
    )


def _accuracy_by_size_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    own, calibrated = accuracies_by_size(found, calibrated=False), accuracies_by_size(found, calibrated=True)
    base_px = found.runs[found.baseline][0].base_size_px
    sizes = _all_sizes(own, calibrated)
    rows = [
        [f"{label}{words}", *(percent_interval(by_size.get(size)) for size in sizes)]
        for label in found.runs
        for by_size, words in ((own.get(label), ""), (calibrated.get(label), ", calibrated"))
        if by_size
    ]
    best = [
        f"{label} is best at {max(by_size, key=lambda size: by_size[size].mean)} px with "
        f"{percent(max(value.mean for value in by_size.values()))} %"
        for label, by_size in (own or calibrated).items()
    ]
    return Plot(
        f"{slug}accuracy-by-size",
        "Accuracy by evaluation size",
        f"Lines of top-1 accuracy over the image size evaluated at: {', '.join(best)}.",
        f"Bars: 95 % intervals over seeds, where there are several. Dotted: {base_px} px, the size of fixed-size "
        "training." + (" Dashed and hollow: batch-norm statistics calibrated at each size." if calibrated else ""),
        draw.draw_accuracy_by_size(own, calibrated, base_px, styles),
        Table("Top-1 accuracy by evaluation size, %", ["regime", *(f"{size} px" for size in sizes)], rows),
    )


def _accuracy_by_gflops_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    own, calibrated = accuracies_by_size(found, calibrated=False), accuracies_by_size(found, calibrated=True)
    sizes = _all_sizes(own, calibrated)
    # A floating-point operation is a multiplication or an addition: two of them a multiply-accumulate.
    gflops = {
        label: {size: 2 * runs[0].macs[str(size)] / 1e9 for size in sizes if str(size) in runs[0].macs}
        for label, runs in found.runs.items()
    }
    if not any(gflops.values()):
        return f"Accuracy by GFLOPs: no counts of multiply-accumulates; {_MISSING_IN_OLD}."
    rows = [
        [f"{label}{words}", f"{size} px", f"{gflops[label][size]:.4g}", percent_interval(by_size[size])]
        for label in found.runs
        for by_size, words in ((own.get(label), ""), (calibrated.get(label), ", calibrated"))
        for size in sizes
        if by_size and size in by_size and size in gflops[label]
    ]
    return Plot(
        f"{slug}accuracy-by-gflops",
        "Accuracy by computation",
        "Lines of top-1 accuracy over the computation of one image's forward pass, one point for each evaluation "
        "size; the table has the figures.",
        "GFLOPs are 2 x multiply-accumulates of one image's forward pass; papers often call the multiply-accumulates "
        "FLOPs, which is half of what stands here.",
        draw.draw_accuracy_by_gflops(own, calibrated, gflops, styles),
        Table("Top-1 accuracy by computation", ["regime", "size", "GFLOPs", "top-1, %"], rows),
    )


def _steps_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    steps = {label: _values(runs, lambda run: run.steps) for label, runs in found.runs.items()}
    steps = {label: values for label, values in steps.items() if values}
    if found.baseline not in steps:
        return "Steps: not in the baseline's records."
    means = {label: statistics.fmean(values) for label, values in steps.items()}
    rows = [
        [
            label,
            f"{mean:,.0f}",
            ratio(mean, means[found.baseline]),
            _mean(found.runs[label], lambda run: run.samples, count),
            _mean(found.runs[label], lambda run: run.distinct_samples, count),
            _mean(found.runs[label], lambda run: run.pixels, count),
        ]
        for label, mean in means.items()
    ]
    return Plot(
        f"{slug}steps",
        "Steps",
        "Bars of optimisation steps: " + ", ".join(f"{label} {mean:,.0f}" for label, mean in means.items()) + ".",
        "Mean over seeds.",
        draw.draw_steps(steps, found.baseline, styles),
        Table(
            "Steps, images and pixels, mean over seeds",
            ["regime", "steps", "of the baseline's", "images drawn", "different images", "pixels"],
            rows,
        ),
    )


def _times_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    durations = {}
    for label, runs in found.runs.items():
        training = _values(runs, lambda run: run.seconds.training)
        if training:
            durations[label] = draw.Duration(training, statistics.fmean(map(_besides, runs)))
    if found.baseline not in durations:
        return "Time: that of the baseline's training is not known."
    parts: list[tuple[str, Callable[[RunRecord], float | None]]] = [
        ("training", lambda run: run.seconds.training),
        ("of it, waiting for data", lambda run: run.seconds.data_wait),
        ("evaluation", lambda run: run.seconds.evaluation),
        ("calibration", lambda run: run.seconds.calibration),
        ("set-up", lambda run: run.seconds.set_up),
    ]
    memory: list[tuple[str, Callable[[RunRecord], float | None]]] = [
        ("peak host memory", lambda run: run.peak_memory_bytes.host),
        ("peak GPU memory", lambda run: run.peak_memory_bytes.gpu),
    ]
    rows = [
        [
            label,
            *(_mean(found.runs[label], value, time) for _, value in parts),
            *(_mean(found.runs[label], value, lambda mean: f"{mean / 2**20:,.0f} MiB") for _, value in memory),
        ]
        for label in durations
    ]
    means = ", ".join(f"{label} {time(statistics.fmean(d.training))}" for label, d in durations.items())
    return Plot(
        f"{slug}time",
        "Time",
        f"Bars of training time, mean over seeds: {means}.",
        "Full colour: training, mean over seeds; pale: evaluation, calibration and set-up, as far as measured.",
        draw.draw_times(durations, found.baseline, styles),
        Table("Where time went, and memory", ["regime", *(name for name, _ in [*parts, *memory])], rows),
    )


def _shapes_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    shares, rows = {}, []
    for label, runs in found.runs.items():
        steps: dict[tuple[int, int, int], int] = {}
        for row in (row for run in runs for row in run.shapes):
            shape = (row.size_px, row.batch_size, row.duplicates)
            steps[shape] = steps.get(shape, 0) + row.steps
        total = sum(steps.values())
        if not total:
            continue
        shares[label] = {
            size: sum(n for shape, n in steps.items() if shape[0] == size) / total
            for size in sorted({shape[0] for shape in steps})
        }
        for shape, n in sorted(steps.items()):
            taken = _mean(
                runs, lambda run, shape=shape: _step_seconds(run, shape), lambda mean: f"{1000 * mean:,.4g} ms"
            )
            rows.append([label, *map(str, shape), f"{n / len(runs):,.0f}", f"{100 * n / total:.1f}", taken])
    if not shares:
        return "Shapes drawn: none in the records."
    words = (
        f"{label} {', '.join(f'{100 * share:.0f} % at {size} px' for size, share in by_size.items())}"
        for label, by_size in shares.items()
    )
    return Plot(
        f"{slug}shapes",
        "Shapes drawn",
        f"Discs for the share of each regime's steps by image size: {'; '.join(words)}.",
        "The area of a disc is the share of the regime's steps that had this image size.",
        draw.draw_shapes(shares, styles),
        Table(
            "Shapes that occurred, mean over seeds",
            ["regime", "size, px", "batch", "duplicates", "steps", "share of steps, %", "time of a step"],
            rows,
        ),
    )


def _gradient_norms_plot(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    norms = {}
    for label, runs in found.runs.items():
        by_size: dict[int, list[GradientNormRow]] = {}
        for row in (row for run in runs for row in run.gradient_norms):
            if row.mean is not None:
                by_size.setdefault(row.size_px, []).append(row)
        if by_size:
            norms[label] = {size: _pooled(rows) for size, rows in sorted(by_size.items())}
    if not norms:
        return f"Gradient norms by size: none in the records; {_MISSING_IN_OLD}."
    rows = [
        [label, str(size), _with_std(row.mean, row.std), _with_std(row.smoothed_mean, row.smoothed_std)]
        for label, found_norms in norms.items()
        for size, row in found_norms.items()
    ]
    smoothed = [label for label in norms if any(row.smoothed_mean is not None for row in norms[label].values())]
    with_it = f"With smoothing: {', '.join(smoothed)}." if smoothed else "No regime smoothed its gradients."
    return Plot(
        f"{slug}gradient-norms",
        "Gradient norms by size",
        f"Mean and standard deviation of the whole network's gradient norm at each image size. {with_it}",
        "L2 norm of the whole network's gradient over all steps at a size: mean, and bars of one standard deviation. "
        + ("Hollow: after gradient smoothing." if smoothed else with_it),
        draw.draw_gradient_norms(norms, styles),
        Table(
            "Gradient norm, mean ± standard deviation over steps",
            ["regime", "size, px", "before smoothing", "after smoothing"],
            rows,
        ),
    )


def _pooled(rows: Sequence[GradientNormRow]) -> draw.Norms:
    """Rows of several runs as one: what the mean and deviation over all their steps are."""

    def pool(
        mean: Callable[[GradientNormRow], float | None], std: Callable[[GradientNormRow], float | None]
    ) -> tuple[float | None, float | None]:
        known = [(row.steps, value, std(row) or 0.0) for row in rows if (value := mean(row)) is not None]
        if not known:
            return None, None
        n = sum(steps for steps, _, _ in known)
        middle = sum(steps * value for steps, value, _ in known) / n
        squares = sum((steps - 1) * spread**2 + steps * (value - middle) ** 2 for steps, value, spread in known)
        return middle, math.sqrt(squares / (n - 1)) if n > 1 else None

    middle, spread = pool(lambda row: row.mean, lambda row: row.std)
    assert middle is not None
    return draw.Norms(middle, spread, *pool(lambda row: row.smoothed_mean, lambda row: row.smoothed_std))


def accuracies_by_size(found: Comparison, calibrated: bool) -> dict[str, dict[int, Estimate]]:
    """Label -> size -> accuracy over seeds, for the regimes that have it."""
    kinds = {
        label: [(run.calibrated_accuracy or {}) if calibrated else run.accuracy for run in runs]
        for label, runs in found.runs.items()
    }
    estimates = {
        label: {
            int(size): estimate([accuracy[size] for accuracy in of_runs if size in accuracy])
            for size in sorted({size for accuracy in of_runs for size in accuracy}, key=int)
        }
        for label, of_runs in kinds.items()
    }
    return {label: by_size for label, by_size in estimates.items() if by_size}


def _all_sizes(*kinds: Mapping[str, Mapping[int, Estimate]]) -> list[int]:
    return sorted({size for kind in kinds for by_size in kind.values() for size in by_size})


def _with_std(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NONE
    return f"{mean:.4g}" if std is None else f"{mean:.4g} ± {std:.3g}"


def _values(runs: Iterable[RunRecord], value: Callable[[RunRecord], float | None]) -> list[float]:
    return [found for run in runs if (found := value(run)) is not None]


def _mean(runs: Iterable[RunRecord], value: Callable[[RunRecord], float | None], words: Callable[[float], str]) -> str:
    found = _values(runs, value)
    return words(statistics.fmean(found)) if found else NONE


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Evenly chosen ones, the last among them."""
    apart = math.ceil(len(points) / _MAX_EVALUATIONS)
    return list(points[::-1][::apart][::-1]) if points else []


def _step_seconds(run: RunRecord, shape: tuple[int, int, int]) -> float | None:
    return next((r.seconds for r in run.shapes if (r.size_px, r.batch_size, r.duplicates) == shape), None)


def _besides(run: RunRecord) -> float:
    return sum(part or 0.0 for part in (run.seconds.evaluation, run.seconds.calibration, run.seconds.set_up))


#: Heading -> what makes its plots from a comparison, what stands before their files' names, and the regimes' styles;
#: where the records do not allow a plot, why not.
PLOTS: Mapping[str, Sequence[Callable[[Comparison, str, Mapping[str, draw.Style]], Plot | str]]] = {
    "Accuracy": (_accuracy_over_time_plot, _accuracy_by_size_plot, _accuracy_by_gflops_plot),
    "Cost": (_steps_plot, _times_plot),
    "Shapes and gradients": (_shapes_plot, _gradient_norms_plot),
}
