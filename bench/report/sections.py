"""From run records to what a report says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixsize.bench.report.comparison import (
    Axis,
    Comparison,
    Standing,
    View,
    compare,
    latest,
    reports_calibrated,
)
from mixsize.bench.report.content import Plot, Report, Section, Table
from mixsize.bench.report.figures import styles_of
from mixsize.bench.report.intervals import Estimate
from mixsize.bench.report.plots import PLOTS, accuracies_by_size
from mixsize.bench.report.quantities import (
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
from mixsize.recipes.records.run_record import RunRecord

_DIFFERENCE = "difference, points"


def make_report(
    title: str, records: Sequence[RunRecord], baseline: str | None = None, size_px: int | None = None
) -> Report:
    """All that the records allow to be said.

    Args:
        title: of the report, for instance the suite's name.
        records: finished and failed runs.
        baseline: a regime's label; by default as :func:`mixsize.bench.report.comparison.compare` has it.
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
    styles = styles_of(list(found.runs))
    sections, left_out = [_headline(found, prefix), _budgets(found, prefix)], []
    for title, makers in PLOTS.items():
        made = [make(found, slug, styles) for make in makers]
        left_out += [f"{prefix}{reason}" for reason in made if isinstance(reason, str)]
        drawn = [plot for plot in made if isinstance(plot, Plot)]
        if drawn:
            sections.append(Section(prefix + title, plots=drawn))
    return sections, left_out


def _headline(found: Comparison, prefix: str) -> Section:
    own = any(not reports_calibrated(run) for runs in found.runs.values() for run in runs)
    calibrated = accuracies_by_size(found, calibrated=True) if own else {}
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


def _model(found: Comparison) -> str:
    return (found.runs[found.baseline][0].recipe.get("model") or {}).get("name") or "The network"


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name.lower()).strip("-")
