"""Regimes are compared by what their records say, hand-calculated, and nothing is assumed beyond that."""

from __future__ import annotations

import pytest
from scipy import stats

from mixsize.bench.report.comparison import (
    Point,
    accuracy_at,
    compare,
    first_reaching,
    latest,
    learning_curve,
    mean_curve,
    reported,
)

from .run_records import make_record

#     epoch, step, seconds, pixels, accuracy
SLOW = [(1, 10, 100.0, 1000, 0.2), (2, 20, 200.0, 2000, 0.4), (3, 30, 300.0, 3000, 0.6)]
FAST = [(1, 5, 50.0, 800, 0.3), (2, 10, 100.0, 1600, 0.5), (3, 15, 150.0, 2400, 0.7)]


def test_learning_curves_are_straight_between_evaluations_and_unknown_outside():
    points = learning_curve(make_record(curve=SLOW), 16)
    assert accuracy_at(points, "seconds", 250) == pytest.approx(0.5)
    assert accuracy_at(points, "epochs", 3) == 0.6
    assert accuracy_at(points, "steps", 9) is None
    assert accuracy_at(points, "pixels", 3001) is None


def test_an_accuracy_is_reached_where_the_line_between_evaluations_crosses_it_first():
    points = learning_curve(make_record(curve=[*SLOW, (4, 40, 400.0, 4000, 0.3), (5, 50, 500.0, 5000, 0.9)]), 16)
    assert first_reaching(points, "seconds", 0.55) == pytest.approx(275)
    assert first_reaching(points, "steps", 0.6) == pytest.approx(30)
    assert first_reaching(points, "pixels", 0.75) == pytest.approx(4750)
    assert first_reaching(points, "steps", 0.1) == 10  # at its first evaluation or before
    assert first_reaching(points, "steps", 0.91) is None


def test_mean_curves_average_evaluation_by_evaluation_as_far_as_all_runs_have_them():
    first, second = (learning_curve(make_record(curve=curve), 16) for curve in (SLOW, FAST[:2]))
    one, two = mean_curve([first, second])
    assert (one.epochs, one.steps, one.seconds, one.pixels) == (1, 7.5, 75, 900)
    assert (one.accuracy, two.accuracy) == pytest.approx((0.25, 0.45))


def test_views_at_equal_budgets_take_the_largest_that_every_run_reached():
    (found,) = compare([make_record("fixed", 17, SLOW), make_record("mixed", 17, FAST)])
    assert found.baseline == "fixed"
    values = {
        axis: (view.amount, view.standings["fixed"].values[17], view.standings["mixed"].values[17])
        for axis, view in found.equal.items()
    }
    assert values["epochs"] == (3, 0.6, 0.7)
    assert values["seconds"] == pytest.approx((150, 0.3, 0.7))
    assert values["pixels"] == pytest.approx((2400, 0.48, 0.7))
    assert found.spent["steps"].standings["mixed"].values == {17: 15}


def test_the_way_to_the_baselines_accuracy_is_counted_in_time_steps_and_pixels():
    (found,) = compare([make_record("fixed", 17, SLOW), make_record("mixed", 17, FAST)])
    costs = {axis: view.standings["mixed"].values[17] for axis, view in found.reaching.items()}
    assert costs == pytest.approx({"seconds": 125, "steps": 12.5, "pixels": 2000})
    assert found.reaching["seconds"].standings["fixed"].values == {17: 300}
    (found,) = compare([make_record("fixed", 17, SLOW), make_record("mixed", 17, FAST)], baseline="mixed")
    assert found.reaching["seconds"].standings["fixed"].values == {}
    assert found.reaching["seconds"].standings["fixed"].estimate is None


def test_targets_are_the_baselines_run_by_run_where_seeds_are_paired_and_its_mean_otherwise():
    def at(accuracy):
        return [(1, 10, 100.0, 1000, 0.0), (2, 20, 200.0, 2000, accuracy)]

    fixed = [make_record("fixed", seed, at(accuracy)) for seed, accuracy in ((1, 0.4), (2, 0.6))]
    (found,) = compare([*fixed, *(make_record("mixed", seed, at(0.8)) for seed in (1, 2))])
    assert found.reaching["seconds"].standings["mixed"].values == pytest.approx({1: 150, 2: 175})
    (found,) = compare([*fixed, *(make_record("mixed", seed, at(0.8)) for seed in (1, 3))])
    assert found.reaching["seconds"].standings["mixed"].values == pytest.approx({1: 162.5, 3: 162.5})
    assert not found.end.standings["mixed"].difference.paired


def test_differences_have_the_interval_of_paired_seeds():
    accuracies = {"fixed": (0.6130, 0.6245, 0.6050), "mixed": (0.5395, 0.5530, 0.5365)}
    records = [
        make_record(label, seed, [(1, 1, 1.0, 1, accuracy)])
        for label, of_label in accuracies.items()
        for seed, accuracy in enumerate(of_label)
    ]
    (found,) = compare(reversed(records))
    standing = found.end.standings["mixed"]
    interval = stats.ttest_rel(accuracies["mixed"], accuracies["fixed"]).confidence_interval()
    assert (standing.difference.low, standing.difference.high) == pytest.approx(tuple(interval))
    assert (len(standing.values), standing.runs) == (3, 3)
    assert found.end.standings["fixed"].difference is None


def test_a_regime_with_a_run_that_never_got_there_has_no_mean():
    records = [make_record("fixed", seed, SLOW) for seed in (1, 2)]
    (found,) = compare([*records, make_record("mixed", 1, FAST), make_record("mixed", 2, SLOW[:2])])
    standing = found.reaching["seconds"].standings["mixed"]
    assert (list(standing.values), standing.runs, standing.estimate, standing.difference) == ([1], 2, None, None)


def test_the_baseline_is_the_one_named_then_fixed_then_the_first():
    records = [make_record("mixed", 1, FAST), make_record("fixed", 1, SLOW), make_record("other", 1, SLOW)]
    assert compare(records)[0].baseline == "fixed"
    assert compare(records, baseline="other")[0].baseline == "other"
    assert compare([records[0], records[2]])[0].baseline == "mixed"
    with pytest.raises(ValueError, match=r"baseline fixd: .* mixed, fixed, other"):
        compare(records, baseline="fixd")


def test_sizes_compared_at_are_the_baselines_own_or_the_nearest_evaluated():
    found = make_record("fixed", 1, accuracy={"8": 0.1, "14": 0.2, "24": 0.3})
    assert compare([found])[0].size_px == 14
    assert compare([found], size_px=24)[0].end.standings["fixed"].values == {1: 0.3}
    with pytest.raises(ValueError, match="size 16: fixed was evaluated at 8, 14, 24 px"):
        compare([found], size_px=16)


def test_workloads_are_compared_apart():
    labels = ("resnet/fixed", "resnet/mixed", "vgg/fixed", "vgg/mixed")
    resnet, vgg = compare([make_record(label, 1, SLOW) for label in labels], baseline="mixed")
    assert (resnet.workload, resnet.baseline, list(resnet.runs)) == ("resnet", "resnet/mixed", list(labels[:2]))
    assert (vgg.workload, vgg.baseline) == ("vgg", "vgg/mixed")


def test_failed_runs_are_left_out_and_repeated_ones_count_once():
    failed = make_record("fixed", 1, outcome="failed", error="no")
    assert compare([failed]) == []
    again = make_record("fixed", 1, SLOW)
    assert latest([failed, again]) == [again]
    (found,) = compare([failed, make_record("mixed", 1, FAST), again])
    assert {label: len(runs) for label, runs in found.runs.items()} == {"fixed": 1, "mixed": 1}


def test_runs_without_a_learning_curve_are_known_at_their_end():
    totals = {"epochs": 3, "steps": 30, "pixels": 3000, "seconds": {"training": 300.0}}
    record = make_record("fixed", 1, accuracy={"16": 0.6}, **totals)
    assert learning_curve(record, 16) == [Point(3, 30, 300, 3000, 0.6)]
    (found,) = compare([record])
    assert found.equal["epochs"].standings["fixed"].values == {1: 0.6}


def test_a_finished_run_without_its_totals_is_refused():
    with pytest.raises(ValueError, match="digits-fixed-seed1: a finished run lacks one of epochs, steps"):
        compare([make_record("fixed", 1, accuracy={"16": 0.6}, steps=None)])


def test_accuracies_are_by_the_statistics_that_the_learning_curve_is_of():
    both = {"accuracy": {"16": 0.5, "8": 0.1}, "calibrated_accuracy": {"16": 0.7, "8": 0.2}}

    def with_calibration(calibration):
        recipe = {"calibration": calibration, "regime": {"base": {"size_px": 16}}}
        return reported(make_record(recipe=recipe, **both))

    assert list(with_calibration({"when": "last"}).items()) == [(8, 0.1), (16, 0.5)]
    assert with_calibration({"when": "each"}) == {8: 0.2, 16: 0.7}
