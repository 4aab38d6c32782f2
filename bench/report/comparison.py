"""Regimes side by side: at the end, at equal epochs, time and pixels, and by what the baseline's accuracy cost.

All of it is a function of run records. Between two evaluations a learning curve is taken to be straight; before the
first and after the last evaluation nothing is assumed of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mixsize.bench.report.intervals import Difference, Estimate, difference, estimate
from mixsize.recipes.records.run_record import RunRecord, by_label

#: What training is counted in: whole epochs, optimisation steps, seconds of training, pixels trained on.
Axis = Literal["epochs", "steps", "seconds", "pixels"]
#: Those in which a budget may be equal; equal steps are not, as a step's images differ.
BUDGETS: tuple[Axis, ...] = ("epochs", "seconds", "pixels")
#: Those in which the way to an accuracy is counted.
COSTS: tuple[Axis, ...] = ("seconds", "steps", "pixels")
#: Regime that others are measured against where none is named.
BASELINE = "fixed"


@dataclass(frozen=True)
class Point:
    """An evaluation: what training had cost by then, and the accuracy as a fraction; None where it was not measured."""

    epochs: float | None
    steps: float | None
    seconds: float | None
    pixels: float | None
    accuracy: float


@dataclass(frozen=True)
class Standing:
    """One regime.

    Attributes:
        values: seed -> value, for the runs that have one.
        runs: how many finished, with a value or without.
        estimate: of the values; None where a run has none.
        difference: to the baseline; None for the baseline itself, and where a run on either side has no value.
    """

    values: Mapping[int, float]
    runs: int
    estimate: Estimate | None
    difference: Difference | None


@dataclass(frozen=True)
class View:
    """All regimes at one budget.

    Attributes:
        amount: the budget, in its axis' unit; None where no run counts it, or for each run's own end.
        standings: label -> its standing.
    """

    amount: float | None
    standings: Mapping[str, Standing]


@dataclass(frozen=True)
class Comparison:
    """Regimes on one workload; accuracies are fractions at ``size_px``.

    Attributes:
        workload: the recipe's name where records hold several; otherwise empty.
        runs: label -> its finished runs, in the order of their seeds.
        baseline: the label that others are measured against.
        size_px: image side that the accuracies are of.
        end: accuracy of each run at its end.
        spent: what each run's training cost in all.
        equal: accuracy after the largest budget that every run reached.
        targets: seed -> accuracy of the baseline that ``reaching`` asks for; under None, that for other seeds.
        reaching: what it had cost when a run first reached the baseline's accuracy.
    """

    workload: str
    runs: Mapping[str, Sequence[RunRecord]]
    baseline: str
    size_px: int
    end: View
    spent: Mapping[Axis, View]
    equal: Mapping[Axis, View]
    targets: Mapping[int | None, float]
    reaching: Mapping[Axis, View]


def compare(records: Sequence[RunRecord], baseline: str | None = None, size_px: int | None = None) -> list[Comparison]:
    """Compare finished runs, workload by workload.

    Of several records of one label and seed, the last counts.

    Args:
        records: of one suite or several runs.
        baseline: a regime's label, with or without the workload before it; by default ``fixed`` where there is one,
            otherwise the first.
        size_px: image side at which accuracies are compared; by default the baseline's own, or of the sizes it was
            evaluated at the nearest.

    Raises:
        ValueError: a baseline that no finished run has, or a size that its runs were not evaluated at.
    """
    finished = [record for record in latest(records) if record.finished and reported(record)]
    workloads: dict[str, list[RunRecord]] = {}
    for record in finished:
        workloads.setdefault(workload_of(record.label), []).append(record)
    labels = list(by_label(finished))
    if baseline is not None and not any(_names(baseline, label) for label in labels):
        raise ValueError(f"baseline {baseline}: no finished run has this label; there are: {', '.join(labels)}")
    return [_compare(workload, by_label(of_it), baseline, size_px) for workload, of_it in workloads.items()]


def latest(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The last record of each label and seed: a run that was repeated counts once."""
    return list({(record.label, record.seed): record for record in records}.values())


def workload_of(label: str) -> str:
    """What stands before a regime's name in a label of a suite with several recipes (``resnet50/fixed``)."""
    return label.rpartition("/")[0]


def reports_calibrated(record: RunRecord) -> bool:
    """Whether the run's learning curve is of calibrated batch-norm statistics, not of the network's own.

    It is where the recipe calibrates before each evaluation; some older records have no other accuracies.
    """
    calibration = record.recipe.get("calibration") or {}
    return calibration.get("when") == "each" or not record.accuracy


def reported(record: RunRecord) -> dict[int, float]:
    """Image side in pixels -> accuracy as a fraction, by the statistics that the run's learning curve is of."""
    kind = record.calibrated_accuracy if reports_calibrated(record) else record.accuracy
    return {int(size): value for size, value in sorted((kind or {}).items(), key=lambda item: int(item[0]))}


def learning_curve(record: RunRecord, size_px: int) -> list[Point]:
    """Evaluations of a finished run at one size, its end included."""
    points = [
        Point(point.epoch, point.step, point.seconds, point.pixels, point.accuracy[str(size_px)])
        for point in record.curve
        if str(size_px) in point.accuracy
    ]
    end = reported(record).get(size_px)
    if end is not None and (not points or record.steps is None or points[-1].steps < record.steps):
        points.append(Point(record.epochs, record.steps, record.seconds.training, record.pixels, end))
    return points


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over runs of their first evaluations, their second ones and so on, as far as every run has one.

    Evaluations of one regime fall on the same epochs in every run.
    """

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None

    return [
        Point(
            **{axis: mean([getattr(point, axis) for point in points]) for axis in get_args(Axis)},
            accuracy=statistics.fmean(point.accuracy for point in points),
        )
        for points in zip(*curves, strict=False)
    ]


def accuracy_at(points: Sequence[Point], axis: Axis, amount: float) -> float | None:
    """Accuracy of a learning curve after some training; None before its first evaluation and beyond its last."""
    costs, accuracies = _along(points, axis)
    if not costs or not costs[0] <= amount <= costs[-1]:
        return None
    return float(np.interp(amount, costs, accuracies))


def first_reaching(points: Sequence[Point], axis: Axis, target: float) -> float | None:
    """What training had cost when the accuracy first came up to a target; None where it never did.

    A curve that starts above the target reached it at its first evaluation, or before: the cost is then an upper bound.
    """
    costs, accuracies = _along(points, axis)
    for index, accuracy in enumerate(accuracies):
        if accuracy >= target:
            if index == 0:
                return costs[0]
            below = accuracies[index - 1]
            return costs[index - 1] + (costs[index] - costs[index - 1]) * (target - below) / (accuracy - below)
    return None


def _along(points: Sequence[Point], axis: Axis) -> tuple[list[float], list[float]]:
    known = [(cost, point.accuracy) for point in points if (cost := getattr(point, axis)) is not None]
    return [cost for cost, _ in known], [accuracy for _, accuracy in known]


def _compare(workload: str, runs: dict[str, list[RunRecord]], baseline: str | None, size_px: int | None) -> Comparison:
    runs = {label: sorted(of_label, key=lambda record: record.seed) for label, of_label in runs.items()}
    label = next(
        (label for label in runs if baseline is not None and _names(baseline, label)),
        next((label for label in runs if _names(BASELINE, label)), next(iter(runs))),
    )
    size = _size(runs[label], size_px)
    curves = {of: {run.seed: learning_curve(run, size) for run in of_label} for of, of_label in runs.items()}
    # The baseline was evaluated at this size in every run, so that its curves have an end.
    ends = {seed: points[-1].accuracy for seed, points in curves[label].items()}
    targets: dict[int | None, float] = {**ends, None: statistics.fmean(ends.values())}

    def view(value: Callable[[str, int, list[Point]], float | None], amount: float | None = None) -> View:
        found = {of: {seed: value(of, seed, points) for seed, points in runs.items()} for of, runs in curves.items()}
        return View(amount, _standings(found, label))

    def spent(axis: Axis) -> View:
        return view(lambda of, seed, points: getattr(points[-1], axis) if points else None)

    def equal(axis: Axis) -> View:
        ends = [_along(points, axis)[0][-1:] for by_seed in curves.values() for points in by_seed.values()]
        if not all(ends):
            return view(lambda of, seed, points: None)
        amount = min(end[0] for end in ends)
        return view(lambda of, seed, points: accuracy_at(points, axis, amount), amount)

    def reaching(axis: Axis) -> View:
        # Against the run of the same seed only where all seeds have one, as differences are paired.
        paired = {of: by_seed.keys() == curves[label].keys() for of, by_seed in curves.items()}
        return view(lambda of, seed, points: first_reaching(points, axis, targets[seed if paired[of] else None]))

    return Comparison(
        workload=workload,
        runs=runs,
        baseline=label,
        size_px=size,
        end=view(lambda of, seed, points: points[-1].accuracy if points else None),
        spent={axis: spent(axis) for axis in COSTS},
        equal={axis: equal(axis) for axis in BUDGETS},
        targets=targets,
        reaching={axis: reaching(axis) for axis in COSTS},
    )


def _standings(found: Mapping[str, Mapping[int, float | None]], baseline: str) -> dict[str, Standing]:
    values = {
        label: {seed: value for seed, value in by_seed.items() if value is not None} for label, by_seed in found.items()
    }
    whole = {label: len(values[label]) == len(by_seed) for label, by_seed in found.items()}
    return {
        label: Standing(
            values=values[label],
            runs=len(by_seed),
            estimate=estimate(list(values[label].values())) if whole[label] else None,
            difference=difference(values[label], values[baseline])
            if label != baseline and whole[label] and whole[baseline]
            else None,
        )
        for label, by_seed in found.items()
    }


def _names(wanted: str, label: str) -> bool:
    return wanted in (label, label.rpartition("/")[2])


def _size(runs: Sequence[RunRecord], wanted: int | None) -> int:
    """The size to compare at, of those that all runs of the baseline were evaluated at."""
    sizes = sorted(set.intersection(*(set(reported(run)) for run in runs)))
    if wanted is not None:
        if wanted not in sizes:
            raise ValueError(f"size {wanted}: {runs[0].label} was evaluated at {', '.join(map(str, sizes))} px")
        return wanted
    if not sizes:
        raise ValueError(f"{runs[0].label}: its runs were evaluated at no size in common")
    return min(sizes, key=lambda size: abs(size - runs[0].base_size_px))
