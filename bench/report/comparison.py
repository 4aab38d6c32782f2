"""Regimes compared at the end, at equal epochs, time and pixels, and by the cost of the baseline's accuracy.

Everything here is a function of run records. A learning curve is linear between two evaluations; before the first and
after the last evaluation it is unknown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from mixsize.bench.report.intervals import Difference, Estimate, difference, estimate
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord, by_label

#: Units of training: whole epochs, optimisation steps, seconds of training, pixels trained on.
Axis = Literal["epochs", "steps", "seconds", "pixels"]
#: Units of an equal budget. Steps are not among them, since steps differ in images.
BUDGETS: tuple[Axis, ...] = ("epochs", "seconds", "pixels")
#: Units in which the cost of an accuracy is given.
COSTS: tuple[Axis, ...] = ("seconds", "steps", "pixels")
#: Label of the default baseline.
BASELINE = "fixed"


@dataclass(frozen=True)
class Point:
    """An evaluation: the training before it, and the accuracy as a fraction."""

    epochs: float
    steps: float
    seconds: float
    pixels: float
    accuracy: float


@dataclass(frozen=True)
class Standing:
    """One regime in a view.

    Attributes:
        values: seed -> value, for the runs that have one.
        runs: number of finished runs, with a value or without.
        estimate: mean of the values; None where a run has none.
        difference: to the baseline; None for the baseline itself and where a run on either side has no value.
    """

    values: Mapping[int, float]
    runs: int
    estimate: Estimate | None
    difference: Difference | None


@dataclass(frozen=True)
class View:
    """All regimes, by label, at one budget; ``amount`` is the budget, None at each run's own end."""

    amount: float | None
    standings: Mapping[str, Standing]


@dataclass(frozen=True)
class Comparison:
    """Regimes on one workload; accuracies are fractions at ``size_px``.

    Attributes:
        workload: the recipe's name where the records hold several recipes, otherwise empty.
        runs: label -> its finished runs in the order of their seeds.
        baseline: label of the baseline.
        size_px: image side that accuracies are compared at.
        eval_images: that every run was evaluated on, the fewest where runs differ; None where a record lacks it.
        statistics: label -> batch-norm statistics of its learning curves and of the accuracies compared.
        end: accuracy of each run at its end.
        spent: training cost of each run.
        equal: accuracy after the largest budget that every run reached.
        targets: seed -> accuracy of the baseline; under None its mean.
        reaching: cost at which a run first reached the baseline's accuracy.
    """

    workload: str
    runs: Mapping[str, Sequence[RunRecord]]
    baseline: str
    size_px: int
    eval_images: int | None
    statistics: Mapping[str, str]
    end: View
    spent: Mapping[Axis, View]
    equal: Mapping[Axis, View]
    targets: Mapping[int | None, float]
    reaching: Mapping[Axis, View]

    @property
    def common_words(self) -> str:
        """The batch-norm statistics of all regimes, after a comma; nothing where regimes differ in them."""
        kinds = set(self.statistics.values())
        return f", {kinds.pop()}" if len(kinds) == 1 else ""

    def named(self, label: str) -> str:
        """A regime's label, with its batch-norm statistics where regimes differ in them."""
        return label if self.common_words else f"{label}, {self.statistics[label]}"


def compare(records: Sequence[RunRecord], baseline: str | None = None, size_px: int | None = None) -> list[Comparison]:
    """Compare finished runs, workload by workload. Of several records of one label and seed, the last counts.

    Args:
        records: of a suite or of several runs.
        baseline: a regime's label, with or without the workload before it; by default ``fixed`` where there is one,
            otherwise the first.
        size_px: image side at which accuracies are compared; by default the baseline's training size, or the nearest
            size that it was evaluated at.

    Raises:
        ValueError: a baseline that no finished run has, a size that its runs were not evaluated at, or a finished run
            without its totals.
    """
    finished = [record for record in latest(records) if record.finished and reported(record)]
    workloads: dict[str, list[RunRecord]] = {}
    for record in finished:
        workloads.setdefault(workload_of(record.label), []).append(record)
    labels = list(by_label(finished))
    if baseline is not None and not any(_names(baseline, label) for label in labels):
        raise ValueError(f"baseline {baseline}: no finished run has this label; the labels are {', '.join(labels)}")
    return [_compare(workload, by_label(of_it), baseline, size_px) for workload, of_it in workloads.items()]


def latest(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The last record of each label and seed, so that a repeated run counts once."""
    return list({(record.label, record.seed): record for record in records}.values())


def workload_of(label: str) -> str:
    """The recipe's name, which precedes the regime's in a suite with several recipes (``resnet50/fixed``)."""
    return label.rpartition("/")[0]


def reports_calibrated(record: RunRecord) -> bool:
    """Whether the learning curve has calibrated batch-norm statistics: where each evaluation calibrates."""
    return (record.recipe.get("calibration") or {}).get("when") == "each"


def reported(record: RunRecord) -> dict[int, float]:
    """Image side in pixels -> accuracy as a fraction, with the batch-norm statistics of the learning curve."""
    kind = record.calibrated_accuracy if reports_calibrated(record) else record.accuracy
    return {int(size): value for size, value in sorted((kind or {}).items(), key=lambda item: int(item[0]))}


def learning_curve(record: RunRecord, size_px: int) -> list[Point]:
    """Evaluations of a finished run at one size, including the one at its end.

    Raises:
        ValueError: a record without the run's totals.
    """
    points = [
        Point(point.epoch, point.step, point.seconds, point.pixels, point.accuracy[str(size_px)])
        for point in record.curve
        if str(size_px) in point.accuracy
    ]
    epochs, steps, seconds, pixels = record.epochs, record.steps, record.seconds.training, record.pixels
    if epochs is None or steps is None or seconds is None or pixels is None:
        raise ValueError(f"{record.name}: a finished run lacks one of epochs, steps, seconds.training and pixels")
    end = reported(record).get(size_px)
    if end is not None and (not points or points[-1].steps < steps):
        points.append(Point(epochs, steps, seconds, pixels, end))
    return points


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Mean over runs of their first evaluations, their second ones and so on, as far as every run has one."""
    return [
        Point(
            **{axis: statistics.fmean(getattr(point, axis) for point in points) for axis in get_args(Axis)},
            accuracy=statistics.fmean(point.accuracy for point in points),
        )
        for points in zip(*curves, strict=False)
    ]


def accuracy_at(points: Sequence[Point], axis: Axis, amount: float) -> float | None:
    """Accuracy of a learning curve after some training; None before its first evaluation and after its last."""
    costs = [getattr(point, axis) for point in points]
    if not costs or not costs[0] <= amount <= costs[-1]:
        return None
    return float(np.interp(amount, costs, [point.accuracy for point in points]))


def first_reaching(points: Sequence[Point], axis: Axis, target: float) -> float | None:
    """Training cost at which the accuracy first reached a target; None where it never did.

    For a curve that starts above the target it is the cost of the first evaluation, an upper bound.
    """
    if points and points[0].accuracy >= target:
        return getattr(points[0], axis)
    for before, after in pairwise(points):
        if after.accuracy >= target:
            part = (target - before.accuracy) / (after.accuracy - before.accuracy)
            return getattr(before, axis) + part * (getattr(after, axis) - getattr(before, axis))
    return None


def _compare(workload: str, runs: dict[str, list[RunRecord]], baseline: str | None, size_px: int | None) -> Comparison:
    runs = {label: sorted(of_label, key=lambda record: record.seed) for label, of_label in runs.items()}
    wanted = BASELINE if baseline is None else baseline
    base = next((label for label in runs if _names(wanted, label)), None)
    base = base or next((label for label in runs if _names(BASELINE, label)), next(iter(runs)))
    size = _size(runs[base], size_px)
    curves = {of: {run.seed: learning_curve(run, size) for run in of_label} for of, of_label in runs.items()}
    # Every run of the baseline was evaluated at this size, so each of its curves has an end.
    ends = {seed: points[-1].accuracy for seed, points in curves[base].items()}
    targets: dict[int | None, float] = {**ends, None: statistics.fmean(ends.values())}
    counts = [run.eval_images for of_label in runs.values() for run in of_label]
    images = None if None in counts else min(count for count in counts if count is not None)

    def view(
        value: Callable[[str, int, list[Point]], float | None],
        amount: float | None = None,
        images: int | None = None,
    ) -> View:
        found = {
            of: {seed: value(of, seed, points) if points else None for seed, points in by_seed.items()}
            for of, by_seed in curves.items()
        }
        return View(amount, _standings(found, base, images))

    def equal(axis: Axis) -> View:
        totals = [getattr(points[-1], axis) for by_seed in curves.values() for points in by_seed.values() if points]
        return view(lambda of, seed, points: accuracy_at(points, axis, min(totals)), min(totals), images)

    def reaching(axis: Axis) -> View:
        # As differences are: against the run of the same seed only where both regimes have the same seeds.
        paired = {of: by_seed.keys() == ends.keys() for of, by_seed in curves.items()}
        return view(lambda of, seed, points: first_reaching(points, axis, targets[seed if paired[of] else None]))

    return Comparison(
        workload=workload,
        runs=runs,
        baseline=base,
        size_px=size,
        eval_images=images,
        statistics={of: CALIBRATED if reports_calibrated(of_label[0]) else OWN for of, of_label in runs.items()},
        end=view(lambda of, seed, points: points[-1].accuracy, images=images),
        spent={axis: view(lambda of, seed, points, axis=axis: getattr(points[-1], axis)) for axis in COSTS},
        equal={axis: equal(axis) for axis in BUDGETS},
        targets=targets,
        reaching={axis: reaching(axis) for axis in COSTS},
    )


def _standings(
    found: Mapping[str, Mapping[int, float | None]], baseline: str, images: int | None
) -> dict[str, Standing]:
    values = {
        label: {seed: value for seed, value in by_seed.items() if value is not None} for label, by_seed in found.items()
    }
    whole = {label: len(values[label]) == len(by_seed) for label, by_seed in found.items()}
    return {
        label: Standing(
            values=values[label],
            runs=len(by_seed),
            estimate=estimate(list(values[label].values()), images) if whole[label] else None,
            difference=difference(values[label], values[baseline], images)
            if label != baseline and whole[label] and whole[baseline]
            else None,
        )
        for label, by_seed in found.items()
    }


def _names(wanted: str, label: str) -> bool:
    return wanted in (label, label.rpartition("/")[2])


def _size(runs: Sequence[RunRecord], wanted: int | None) -> int:
    """The size to compare at, one that all runs of the baseline were evaluated at."""
    sizes = sorted(set.intersection(*(set(reported(run)) for run in runs)))
    if wanted is not None:
        if wanted not in sizes:
            raise ValueError(f"size {wanted}: {runs[0].label} was evaluated at {', '.join(map(str, sizes))} px")
        return wanted
    if not sizes:
        raise ValueError(f"{runs[0].label}: its runs were evaluated at no size in common")
    return min(sizes, key=lambda size: abs(size - runs[0].base_size_px))
