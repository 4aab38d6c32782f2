"""From run records to what a report says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from mixsize.bench import report_figures as draw
from mixsize.bench.comparison import (
    Axis,
    Comparison,
    Point,
    Standing,
    View,
    compare,
    latest,
    learning_curve,
    mean_curve,
    reports_calibrated,
)
from mixsize.bench.intervals import Estimate, estimate
from mixsize.bench.quantities import (
    NONE,
    count,
    count_span,
    percent,
    percent_interval,
    points_interval,
    ratio,
    signed,
    time,
    time_span,
)
from mixsize.bench.report_content import Plot, Report, Section, Table
from mixsize.recipes.run_record import GradientNormRow, RunRecord

# Rows of a learning curve's table, for each regime.
_MAX_EVALUATIONS = 12
_DIFFERENCE = "difference, points"
_MISSING_IN_OLD = "records of version 3 have them, these do not"


def make_report(
    title: str, records: Sequence[RunRecord], baseline: str | None = None, size_px: int | None = None
) -> Report:
    """All that the records allow to be said.

    Args:
        title: of the report, for instance the suite's name.
        records: finished and failed runs.
        baseline: a regime's label; by default as :func:`mixsize.bench.comparison.compare` has it.
        size_px: image side at which accuracies are compared, likewise.

    Raises:
        ValueError: no records, a baseline that no finished run has, a size that it was not evaluated at.
    """
    if not records:
        raise ValueError("records: there are none to report on")
    counted = latest(records)
    comparisons = compare(counted, baseline, size_px)
    failed = [record for record in counted if not record.finished]
    sections, left_out = [], []
    for found in comparisons:
        of_it, without = _workload_sections(found, alone=len(comparisons) == 1)
        sections += of_it
        left_out += without
    if not comparisons:
        left_out.append("Comparison: no run finished with an accuracy.")
    if failed:
        sections.append(_failures(failed))
    sections += [_runs(counted), _environments(counted)]
    return Report(title, _subtitle(counted, failed, len(records) - len(counted)), sections, left_out)


def _subtitle(records: Sequence[RunRecord], failed: Sequence[RunRecord], repeated: int) -> str:
    regimes, seeds = len({r.label for r in records}), len({r.seed for r in records})
    text = (
        f"{_number(len(records), 'run')} of {_number(regimes, 'regime')} over {_number(seeds, 'seed')}, "
        f"{'none' if not failed else len(failed)} failed."
    )
    return text + (f" Of runs that were repeated, the last counts; {repeated} earlier left out." if repeated else "")


def _workload_sections(found: Comparison, alone: bool) -> tuple[list[Section], list[str]]:
    prefix = "" if alone else f"{found.workload or _model(found)}: "
    slug = "" if alone else f"{_slug(found.workload or _model(found))}-"
    styles = draw.styles_of(list(found.runs))
    left_out: list[str] = []

    def section(title: str, *plots: Plot | str) -> list[Section]:
        """The section of the plots there is data for; for the others, why not, in ``left_out``."""
        left_out.extend(f"{prefix}{plot}" for plot in plots if isinstance(plot, str))
        drawn = [plot for plot in plots if isinstance(plot, Plot)]
        return [Section(prefix + title, plots=drawn)] if drawn else []

    sections = [
        _headline(found, prefix),
        _budgets(found, prefix),
        *section(
            "Accuracy",
            _over_time(found, slug, styles),
            _by_size(found, slug, styles),
            _by_gflops(found, slug, styles),
        ),
        *section("Cost", _steps(found, slug, styles), _times(found, slug, styles)),
        *section("Shapes and gradients", _shapes(found, slug, styles), _norms(found, slug, styles)),
    ]
    return sections, left_out


def _headline(found: Comparison, prefix: str) -> Section:
    own = any(not reports_calibrated(run) for runs in found.runs.values() for run in runs)
    calibrated = _by_statistics(found, calibrated=True) if own else {}
    head = ["regime", "runs", f"top-1 at {found.size_px} px, %"]
    if calibrated:
        head.append("calibrated, %")
    head += [_DIFFERENCE, "steps", "training time", "pixels"]
    rows = []
    for label, standing in found.end.standings.items():
        row = [label, str(standing.runs), percent_interval(standing.estimate)]
        if calibrated:
            row.append(percent_interval(calibrated.get(label, {}).get(found.size_px)))
        row += [
            _difference(found, label, standing),
            _spent(found, "steps", label, lambda mean: f"{mean:,.0f}"),
            _spent(found, "seconds", label, time),
            _spent(found, "pixels", label, count),
        ]
        rows.append(row)
    return Section(
        f"{prefix}Comparison",
        sentences=[*filter(None, (_sentence(found, label) for label in found.runs if label != found.baseline))],
        tables=[Table(f"Regimes at the end of training, against {found.baseline}", head, rows)],
        notes=[_how(found)],
        compares=True,
    )


def _sentence(found: Comparison, label: str) -> str | None:
    """One regime against the baseline, in words."""
    standing = found.end.standings[label]
    there = standing.difference
    if there is None:
        return None
    size = f"at {found.size_px} px"
    amount, span = f"{abs(100 * there.mean):.1f} points", ""
    if there.low is not None and there.high is not None:
        span = f" ({signed(100 * there.low)} to {signed(100 * there.high)})"
    if there.shown:
        text = f"{label}: {amount} {'above' if there.mean > 0 else 'below'} {found.baseline} {size}{span}"
    elif there.shown is None:
        text = f"{label}: {signed(100 * there.mean)} points against {found.baseline} {size}, one seed: no interval"
    else:
        text = f"{label}: no difference shown {size} ({signed(100 * there.mean)} points{span})"
        text = text.replace(") (", ", ").replace(" points (", " points, ").replace("))", ")")
    costs = []
    for axis, words in (("steps", "the steps"), ("seconds", "the time"), ("pixels", "the pixels")):
        times, spent = _ratio(found.spent[axis], label, found.baseline), found.spent[axis].standings[label].difference
        if times != NONE:
            unsure = axis == "seconds" and spent is not None and not spent.shown
            costs.append(f"{times} {words}" + (f" ({spent.verdict})" if unsure else ""))
    return f"{text}; {', '.join(costs)}." if costs else f"{text}."


def _how(found: Comparison) -> str:
    pairs = {s.difference.paired for s in found.end.standings.values() if s.difference is not None}
    several = max(len(runs) for runs in found.runs.values()) > 1
    text = f"{_model(found)}, {_number(max(map(len, found.runs.values())), 'run')} of each regime at most. "
    text += f"Top-1 accuracy with {_statistics(found)}. "
    if several:
        text += "In brackets: 95 % confidence intervals over seeds (Student's t). "
        kinds = {True: "Differences are paired by seed. ", False: "Differences are Welch's, as seeds differ. "}
        text += kinds[next(iter(pairs))] if len(pairs) == 1 else ""
        if len(pairs) == 2:
            text += "Differences are paired by seed where both regimes have the same seeds, Welch's otherwise. "
    return text + "Ratios are to the baseline's mean."


def _statistics(found: Comparison) -> str:
    kinds = {reports_calibrated(run) for runs in found.runs.values() for run in runs}
    if kinds == {True}:
        return "batch-norm statistics calibrated at each size"
    if kinds == {False}:
        return "each network's own batch-norm statistics"
    return "each network's own batch-norm statistics, calibrated ones where the recipe calibrates each evaluation"


def _budgets(found: Comparison, prefix: str) -> Section:
    tables = [_equal_table(found), _reaching_table(found)]
    notes = [
        "Equal budgets: the largest that every run reached. Learning curves are taken to be straight between two "
        "evaluations; before the first and after the last nothing is assumed. A run that is cut off before its "
        "learning rate has fallen does worse there than one that was planned for that budget.",
        f"Baseline's accuracy: at {found.size_px} px, at its end, "
        + ", ".join(f"{percent(value)} % (seed {seed})" for seed, value in found.targets.items() if seed is not None)
        + ". Where seeds are the same, each run is held against the baseline's run of its seed, otherwise against the "
        "mean. A run that starts above it reached it at its first evaluation, or before.",
    ]
    return Section(f"{prefix}At equal budgets", tables=tables, notes=notes, compares=True)


def _equal_table(found: Comparison) -> Table:
    words: dict[Axis, Callable[[float], str]] = {
        "epochs": lambda amount: f"{amount:g} epochs",
        "seconds": time,
        "pixels": lambda amount: count(amount, "px"),
    }
    head, columns = ["regime"], []
    for axis, view in found.equal.items():
        kind = {"epochs": "epochs", "seconds": "time", "pixels": "pixels"}[axis]
        head += [f"equal {kind}, %" if view.amount is None else f"after {words[axis](view.amount)}, %", _DIFFERENCE]
        columns.append(view)
    rows = [
        [
            label,
            *(
                cell
                for view in columns
                for cell in (_known(view.standings[label]), _difference(found, label, view.standings[label]))
            ),
        ]
        for label in found.runs
    ]
    return Table(f"Top-1 accuracy at {found.size_px} px after equal epochs, time and pixels", head, rows)


def _known(standing: Standing) -> str:
    if standing.estimate is not None:
        return percent_interval(standing.estimate)
    return "not evaluated by then"


def _difference(found: Comparison, label: str, standing: Standing) -> str:
    """The difference to the baseline, and on a second line what may be said of it."""
    if label == found.baseline:
        return "baseline"
    if standing.difference is None:
        return NONE
    return f"{points_interval(standing.difference)}\n{standing.difference.verdict}"


def _reaching_table(found: Comparison) -> Table:
    words: dict[Axis, Callable[[float], str]] = {
        "seconds": time,
        "steps": lambda mean: f"{mean:,.0f}",
        "pixels": count,
    }
    rows = []
    for label in found.runs:
        standing = found.reaching["steps"].standings[label]
        row = [label, f"{len(standing.values)} of {standing.runs}"]
        for axis, view in found.reaching.items():
            there = view.standings[label]
            if there.estimate is None:
                row.append("not reached" if not there.values else "not reached by all")
                continue
            cost = _with_ratio(there.estimate, words[axis], _ratio(view, label, found.baseline))
            low, high = there.estimate.low, there.estimate.high
            span = time_span if axis == "seconds" else count_span
            # Nothing costs less than nothing.
            more = [span(max(0.0, low), high)] if low is not None and high is not None and low < high else []
            more += [] if there.difference is None else [there.difference.verdict]
            row.append("\n".join([cost, ", ".join(more)]) if more else cost)
        rows.append(row)
    head = ["regime", "reached by", "training time", "steps", "pixels"]
    return Table(f"What it took to reach {found.baseline}'s accuracy at {found.size_px} px", head, rows)


def _over_time(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
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


def _by_size(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    own, calibrated = _by_statistics(found, calibrated=False), _by_statistics(found, calibrated=True)
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


def _by_gflops(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
    own, calibrated = _by_statistics(found, calibrated=False), _by_statistics(found, calibrated=True)
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


def _steps(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
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


def _times(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
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


def _shapes(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
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


def _norms(found: Comparison, slug: str, styles: Mapping[str, draw.Style]) -> Plot | str:
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


def _failures(failed: Sequence[RunRecord]) -> Section:
    return Section(
        "Failed runs",
        sentences=[f"{_number(len(failed), 'run')} failed and {'is' if len(failed) == 1 else 'are'} in no mean."],
        quotes=[(run.name, run.error or "no error was recorded") for run in failed],
    )


def _runs(records: Sequence[RunRecord]) -> Section:
    rows = [
        [
            run.name,
            run.label,
            str(run.seed),
            run.outcome,
            NONE if run.epochs is None else str(run.epochs),
            NONE if run.steps is None else f"{run.steps:,}",
            NONE if run.seconds.training is None else time(run.seconds.training),
            run.plan_digest or NONE,
            NONE if run.sequence_crc is None else f"{run.sequence_crc:08x}",
        ]
        for run in records
    ]
    head = ["run", "regime", "seed", "outcome", "epochs", "steps", "training time", "plan", "shapes' checksum"]
    return Section("Runs", tables=[Table("Every run", head, rows)])


def _environments(records: Sequence[RunRecord]) -> Section:
    """What runs were made with, one row for each combination that occurs."""
    found: dict[tuple[str, ...], int] = {}
    for run in records:
        where = run.environment
        commit = (run.commit or "unknown")[:12] + (" with changes" if run.dirty else "")
        hardware = f"{where.gpu}, driver {where.driver or 'unknown'}" if where.gpu else "none"
        key = (
            commit, where.cpu, NONE if where.cores is None else str(where.cores), hardware, str(where.ranks),
            where.python, where.torch, where.composer, where.timm, where.ffcv,
        )  # fmt: skip
        found[key] = found.get(key, 0) + 1
    head = ["runs", "commit", "CPU", "cores", "GPU", "ranks", "Python", "PyTorch", "Composer", "timm", "FFCV"]
    rows = [[str(n), *key] for key, n in found.items()]
    notes = []
    if len({key[0] for key in found}) > 1:
        notes.append("The runs are not all of the same source.")
    if len({key[1:] for key in found}) > 1:
        notes.append("The runs were not all made in the same place: their times do not compare.")
    return Section("Environment", tables=[Table("Where and with what", head, rows)], notes=notes)


def _by_statistics(found: Comparison, calibrated: bool) -> dict[str, dict[int, Estimate]]:
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


def _spent(found: Comparison, axis: Axis, label: str, words: Callable[[float], str]) -> str:
    """What training cost; for time, which varies, also what may be said of the difference."""
    there = found.spent[axis].standings[label]
    if there.estimate is None:
        return NONE
    cost = _with_ratio(there.estimate, words, _ratio(found.spent[axis], label, found.baseline))
    return f"{cost}\n{there.difference.verdict}" if axis == "seconds" and there.difference is not None else cost


def _ratio(view: View, label: str, baseline: str) -> str:
    if label == baseline:
        return NONE
    there, base = view.standings[label].estimate, view.standings[baseline].estimate
    return NONE if there is None or base is None else ratio(there.mean, base.mean)


def _with_ratio(found: Estimate, words: Callable[[float], str], times: str) -> str:
    return words(found.mean) if times == NONE else f"{words(found.mean)} ({times})"


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


def _model(found: Comparison) -> str:
    return (found.runs[found.baseline][0].recipe.get("model") or {}).get("name") or "The network"


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name.lower()).strip("-")
