"""The sections of a report, made from run records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixsize.bench.report import tables
from mixsize.bench.report.comparison import (
    Axis,
    Comparison,
    Standing,
    View,
    compare,
    latest,
)
from mixsize.bench.report.content import Report, Section, Table
from mixsize.bench.report.intervals import MOST_SEEDS, Difference, Estimate
from mixsize.bench.report.plots import accuracies, make_plots
from mixsize.bench.report.quantities import (
    NONE,
    count,
    percent,
    percent_interval,
    points_interval,
    ratio,
    signed,
    time,
)
from mixsize.bench.report.settings import setting_tables
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord

_DIFFERENCE = "difference, points"
_AMOUNTS: dict[Axis, Callable[[float], str]] = {
    "epochs": lambda amount: f"{amount:g} epochs",
    "steps": lambda amount: f"{amount:,.0f}",
    "seconds": time,
    "pixels": lambda amount: count(amount, "px"),
}


def make_report(
    title: str, records: Sequence[RunRecord], baseline: str | None = None, size_px: int | None = None
) -> Report:
    """A report on finished and failed runs.

    Args:
        title: of the report, for instance the suite's name.
        records: of the runs; of a repeated run the last record counts.
        baseline: a regime's label, see :func:`mixsize.bench.report.comparison.compare`.
        size_px: image side at which accuracies are compared, see there.

    Raises:
        ValueError: no records, or as :func:`~mixsize.bench.report.comparison.compare` does.
    """
    if not records:
        raise ValueError("there are no records to report on")
    counted = latest(records)
    comparisons = compare(counted, baseline, size_px)
    failed = [record for record in counted if not record.finished]
    sections: list[Section] = []
    left_out: list[str] = []
    for found in comparisons:
        of_it, missing = _workload_sections(found, alone=len(comparisons) == 1)
        sections += of_it
        left_out += missing
    if not comparisons:
        left_out.append("Comparison: no run finished with an accuracy.")
    if failed:
        sections.append(_failures(failed))
    environments, notes = tables.environment_table(counted)
    sections.append(Section("Runs", tables=[tables.run_table(counted), environments], notes=notes))
    return Report(title, _subtitle(counted, failed, len(records) - len(counted)), sections, left_out)


def _subtitle(records: Sequence[RunRecord], failed: Sequence[RunRecord], repeated: int) -> str:
    regimes, seeds = len({run.label for run in records}), len({run.seed for run in records})
    text = f"{_number(len(records), 'run')} of {_number(regimes, 'regime')} over {_number(seeds, 'seed')}, "
    text += f"{len(failed) or 'none'} failed."
    return text + (f" The last of repeated runs counts; {repeated} earlier left out." if repeated else "")


def _workload_sections(found: Comparison, alone: bool) -> tuple[list[Section], list[str]]:
    """The sections of one workload, and the reasons for plots that are missing from them."""
    name = found.workload or _model(found)
    prefix = "" if alone else f"{name}: "
    slug = "" if alone else "".join(c if c.isalnum() else "-" for c in name.lower()) + "-"
    plots, left_out = make_plots(found, slug)
    classes = tables.class_table(found)
    others = [table for table in (tables.shape_table(found), tables.gradient_norm_table(found)) if table.rows]
    sections = [
        Section(f"{prefix}Setting", tables=setting_tables(found)),
        _headline(found, prefix),
        _budgets(found, prefix),
        Section(f"{prefix}Accuracy", plots=plots, tables=[classes] if classes.rows else []),
        Section(
            f"{prefix}Cost",
            tables=[tables.work_table(found), tables.time_table(found)],
            notes=[
                "Wall-clock: set-up, training and evaluation together, from start to end. Training time: steps and the "
                "waits between them."
            ],
        ),
    ]
    if others:
        sections.append(Section(f"{prefix}Shapes and gradients", tables=others))
    return sections, [f"{prefix}{reason}" for reason in left_out]


def _headline(found: Comparison, prefix: str) -> Section:
    calibrated = accuracies(found, calibrated=True) if OWN in found.statistics.values() else {}
    head = ["regime", "runs", f"top-1 at {found.size_px} px{found.common_words}, %"]
    head += [_DIFFERENCE]
    head += [f"top-1 at {found.size_px} px, {CALIBRATED}, %"] if calibrated else []
    head += ["steps", "training time", "pixels"]
    rows = []
    for label, standing in found.end.standings.items():
        row = [found.named(label), str(standing.runs), percent_interval(standing.estimate)]
        row += [_difference(found, label, standing)]
        row += [percent_interval(calibrated.get(label, {}).get(found.size_px))] if calibrated else []
        row += [_spent(found, axis, label) for axis in ("steps", "seconds", "pixels")]
        rows.append(row)
    return Section(
        f"{prefix}Comparison",
        sentences=[text for label in found.runs if label != found.baseline if (text := _sentence(found, label))],
        tables=[Table(f"Regimes at the end of training, against {found.baseline}", head, rows)],
        notes=[_method(found)],
        compares=True,
    )


def _sentence(found: Comparison, label: str) -> str | None:
    """One regime against the baseline; None where a run on either side has no accuracy."""
    gain = found.end.standings[label].difference
    if gain is None:
        return None
    against = f"{found.named(found.baseline)} at {found.size_px} px{found.common_words}"
    points = f"{abs(100 * gain.mean):.1f} points"
    span = ""
    if gain.low is not None and gain.high is not None:
        span = f"{signed(100 * gain.low)} to {signed(100 * gain.high)}"
    if gain.shown is None:
        text = f"{found.named(label)}: {signed(100 * gain.mean)} points against {against}, {gain.verdict}"
    elif gain.shown:
        text = f"{found.named(label)}: {points} {'above' if gain.mean > 0 else 'below'} {against} ({span})"
    else:
        text = f"{found.named(label)}: {signed(100 * gain.mean)} points against {against} ({span}): {gain.verdict}"
    names: dict[Axis, str] = {"steps": "the steps", "seconds": "the training time", "pixels": "the pixels"}
    costs = []
    for axis, words in names.items():
        times, spent = _ratio(found.spent[axis], label, found.baseline), found.spent[axis].standings[label].difference
        if times != NONE:
            unsure = f" ({spent.verdict})" if axis == "seconds" and spent is not None and not spent.shown else ""
            costs.append(f"{times} {words}{unsure}")
    return f"{text}; {', '.join(costs)}." if costs else f"{text}."


def _method(found: Comparison) -> str:
    """How the accuracies of the headline were measured and compared."""
    words = {
        OWN: f"{OWN.capitalize()}: batch norm as trained.",
        CALIBRATED: f"{CALIBRATED.capitalize()}: batch norm's statistics measured at the size of the evaluation.",
    }
    kinds = {*found.statistics.values()}
    if any(run.calibrated_accuracy for runs in found.runs.values() for run in runs):
        kinds.add(CALIBRATED)
    text = " ".join(words[kind] for kind in words if kind in kinds)
    if len(set(found.statistics.values())) > 1:
        text += " Differences between regimes of unlike statistics include the effect of calibration."
    if max(map(len, found.runs.values())) > 1:
        text += f" {_interval_words(found)}"
    return text + " Ratios are to the baseline's mean."


def _interval_words(found: Comparison) -> str:
    """What the intervals include."""
    accuracies = "alone, since the records do not give the number of test images. "
    if found.eval_images is not None:
        accuracies = (
            f"and over test images. The error that {found.eval_images:,} test images leave is taken as if the regimes "
            "erred independently, an upper bound; more seeds do not make it smaller. Intervals of times, steps and "
            "pixels are over seeds. "
        )
    return (
        f"In brackets: 95 % confidence intervals. Those of accuracies are over seeds {accuracies}Differences are "
        "paired by seed where both regimes have the same seeds, Welch's otherwise. Seeds that would tell: with 80 % "
        f"power at the 5 % level, if difference and spread are as measured; at most {MOST_SEEDS} are tried."
    )


def _budgets(found: Comparison, prefix: str) -> Section:
    targets = [f"{percent(value)} % (seed {seed})" for seed, value in found.targets.items() if seed is not None]
    notes = [
        "Equal budgets: the largest that every run reached. Learning curves are linear between two evaluations and "
        "unknown before the first and after the last. A run that is cut off before its learning rate has fallen does "
        "worse than one that was planned for that budget.",
        f"Final accuracy of {found.baseline} at {found.size_px} px, {found.statistics[found.baseline]}: "
        f"{', '.join(targets)}. With the same seeds, each "
        "run is compared with the baseline's run of its seed, otherwise with the mean. A run that starts above it "
        "counts as reaching it at its first evaluation.",
    ]
    return Section(
        f"{prefix}At equal budgets", tables=[_equal_table(found), _reaching_table(found)], notes=notes, compares=True
    )


def _equal_table(found: Comparison) -> Table:
    head = ["regime"]
    for axis, view in found.equal.items():
        assert view.amount is not None
        head += [f"after {_AMOUNTS[axis](view.amount)}, %", _DIFFERENCE]
    rows = []
    for label in found.runs:
        row = [found.named(label)]
        for view in found.equal.values():
            standing = view.standings[label]
            known = "not evaluated by then" if standing.estimate is None else percent_interval(standing.estimate)
            row += [known, _difference(found, label, standing)]
        rows.append(row)
    caption = f"Top-1 accuracy at {found.size_px} px{found.common_words}, after equal epochs, training time and pixels"
    return Table(caption, head, rows)


def _difference(found: Comparison, label: str, standing: Standing) -> str:
    """The difference to the baseline, and on a second line the verdict."""
    if label == found.baseline:
        return "baseline"
    if standing.difference is None:
        return NONE
    return f"{points_interval(standing.difference)}\n{_verdict(standing.difference)}"


def _verdict(found: Difference) -> str:
    """The verdict on lines that keep columns narrow."""
    return found.verdict.replace("; ", ";\n")


def _reaching_table(found: Comparison) -> Table:
    rows = []
    for label in found.runs:
        standing = found.reaching["steps"].standings[label]
        row = [found.named(label), f"{len(standing.values)} of {standing.runs}"]
        for axis, view in found.reaching.items():
            there = view.standings[label]
            if there.estimate is None:
                row.append("not reached by all" if there.values else "not reached")
                continue
            cost = _with_ratio(there.estimate, axis, _ratio(view, label, found.baseline))
            details = _cost_interval(there.estimate, axis)
            details += [] if there.difference is None else [_verdict(there.difference)]
            row.append("\n".join([cost, ", ".join(details)]) if details else cost)
        rows.append(row)
    head = ["regime", "reached by", "training time", "steps", "pixels"]
    caption = f"Cost of {found.named(found.baseline)}'s accuracy at {found.size_px} px{found.common_words}"
    return Table(caption, head, rows)


def _cost_interval(found: Estimate, axis: Axis) -> list[str]:
    """The interval of a cost, which is not negative; empty without one."""
    if found.low is None or found.high is None or found.low == found.high:
        return []
    return [f"{_AMOUNTS[axis](max(0.0, found.low))} to {_AMOUNTS[axis](found.high)}"]


def _failures(failed: Sequence[RunRecord]) -> Section:
    return Section(
        "Failed runs",
        sentences=[f"{_number(len(failed), 'run')} failed and {'is' if len(failed) == 1 else 'are'} in no mean."],
        quotes=[(run.name, run.error or "no error was recorded") for run in failed],
    )


def _spent(found: Comparison, axis: Axis, label: str) -> str:
    """Training cost; for time, which varies, with the verdict on the difference."""
    there = found.spent[axis].standings[label]
    if there.estimate is None:
        return NONE
    cost = _with_ratio(there.estimate, axis, _ratio(found.spent[axis], label, found.baseline))
    return f"{cost}\n{_verdict(there.difference)}" if axis == "seconds" and there.difference is not None else cost


def _ratio(view: View, label: str, baseline: str) -> str:
    if label == baseline:
        return NONE
    there, base = view.standings[label].estimate, view.standings[baseline].estimate
    return NONE if there is None or base is None else ratio(there.mean, base.mean)


def _with_ratio(found: Estimate, axis: Axis, times: str) -> str:
    words = _AMOUNTS[axis](found.mean)
    return words if times == NONE else f"{words} ({times})"


def _model(found: Comparison) -> str:
    return (found.runs[found.baseline][0].recipe.get("model") or {}).get("name") or "The network"


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
