"""Intervals are Student's and Welch's with the error of the test set, and say no more than they may."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixsize.bench.report.intervals import difference, estimate, seeds_needed

A = {17: 0.6130, 18: 0.6245, 19: 0.6050}
B = {17: 0.5395, 18: 0.5530, 19: 0.5365}
C = {30: 0.551, 31: 0.499, 32: 0.612, 33: 0.580}


def test_interval_of_a_mean_is_students():
    values = list(A.values())
    found = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    # By hand: mean 2, s = 1, t(2) = 4.3027; 4.3027 / sqrt(3) = 2.4841
    by_hand = estimate([1.0, 2.0, 3.0])
    assert by_hand.mean == 2
    assert (by_hand.low, by_hand.high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)


def test_one_value_has_no_interval():
    assert estimate([0.5]).low is None
    assert difference({17: 0.9}, {17: 0.1}).verdict == "one seed: no interval"
    assert difference({17: 0.9, 18: 0.8}, {17: 0.1}).verdict == "one seed: no interval"


def test_same_seeds_are_paired():
    found = difference(dict(reversed(B.items())), A)  # in whatever order they stand
    low, high = stats.ttest_rel(list(B.values()), list(A.values())).confidence_interval()
    assert found.paired
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.verdict == "lower"


def test_other_seeds_are_taken_as_independent_after_welch():
    found = difference(C, A)
    interval = stats.ttest_ind(list(C.values()), list(A.values()), equal_var=False).confidence_interval()
    assert not found.paired
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    # One seed more on one side is enough.
    assert not difference({**B, 20: 0.5}, A).paired


def test_pairing_shows_what_the_spread_of_seeds_hides():
    baseline = {1: 0.50, 2: 0.60, 3: 0.70}
    raised = {seed: value + 0.02 + 0.001 * seed for seed, value in baseline.items()}
    assert difference(raised, baseline).verdict == "higher"
    unpaired = difference({seed + 10: value for seed, value in raised.items()}, baseline)
    assert unpaired.verdict.startswith("3 seeds cannot tell")


def test_equal_values_show_no_difference():
    assert not difference(A, A).shown
    assert not difference({1: 0.5, 2: 0.5}, {3: 0.5, 4: 0.5}).shown
    assert difference({1: 0.6, 2: 0.6}, {3: 0.5, 4: 0.5}).verdict == "higher"


def test_seeds_that_tie_still_have_the_error_of_their_test_images():
    # By hand: (90 + 2) / 104 = 0.88462; sqrt(0.88462 * 0.11538 / 100) = 0.031949; times 1.95996 it is 0.06262.
    tied = estimate([0.9, 0.9], images=100)
    assert (tied.low, tied.high) == pytest.approx((0.9 - 0.06262, 0.9 + 0.06262), abs=1e-5)
    # All right: (100 + 2) / 104 = 0.98077; 1.95996 * sqrt(0.98077 * 0.01923 / 100) = 0.02692.
    assert estimate([1.0, 1.0], images=100).low == pytest.approx(1 - 0.02692, abs=1e-5)
    # Of a difference, both errors: (70 + 2) / 104 = 0.69231, 0.69231 * 0.30769 / 100 = 0.0021302,
    # sqrt(0.0010207 + 0.0021302) = 0.056133; times 1.95996 it is 0.11002.
    apart = difference({1: 0.9, 2: 0.9}, {1: 0.7, 2: 0.7}, images=100)
    assert (apart.low, apart.high) == pytest.approx((0.2 - 0.11002, 0.2 + 0.11002), abs=1e-5)


def test_errors_of_seeds_and_of_test_images_add_in_quadrature():
    values = list(A.values())
    seeds, whole = estimate(values), estimate(values, images=2000)
    images = estimate([seeds.mean] * 2, images=2000)
    assert whole.high - whole.mean == pytest.approx(np.hypot(seeds.high - seeds.mean, images.high - images.mean))
    for baseline in (A, C):
        assert difference(B, baseline, 2000).low < difference(B, baseline).low


def simulated(generator, trials, images, own_part):
    """Accuracies of three seeds of two regimes in each trial, and the expected ones over all images.

    An image is easy or hard for both regimes alike, and in a part of its own for each.
    """
    shared = generator.normal(size=(trials, 1, images))
    accuracies, expected = [], []
    for offset in (1.0, 1.4):
        own = generator.normal(size=(trials, 1, images))
        logits = offset + 4 * (np.sqrt(1 - own_part) * shared + np.sqrt(own_part) * own)
        right = generator.random((trials, 3, images)) < 1 / (1 + np.exp(-logits))
        accuracies.append(right.mean(axis=2))
        # Both parts together have variance 1.
        expected.append(float((1 / (1 + np.exp(-(offset + 4 * generator.normal(size=400_000))))).mean()))
    return accuracies, expected


@pytest.mark.parametrize("own_part", [0.1, 0.9])
def test_intervals_hold_for_other_test_images_and_those_of_seeds_alone_do_not(own_part):
    """Test sets of 300 images, whose difficulties the regimes share for the most part, or hardly."""
    trials, images = 1000, 300
    (base, other), expected = simulated(np.random.default_rng(5), trials, images, own_part)
    held = {"mean": 0, "mean of seeds": 0, "difference": 0, "difference of seeds": 0}
    for first, second in zip(base.tolist(), other.tolist(), strict=True):
        pair = dict(enumerate(second)), dict(enumerate(first))
        for key, found, truth in (
            ("mean", estimate(first, images), expected[0]),
            ("mean of seeds", estimate(first), expected[0]),
            ("difference", difference(*pair, images), expected[1] - expected[0]),
            ("difference of seeds", difference(*pair), expected[1] - expected[0]),
        ):
            held[key] += found.low <= truth <= found.high
    assert min(held["mean"], held["difference"]) >= 0.95 * trials
    assert held["mean of seeds"] < 0.85 * trials
    if own_part > 0.5:
        assert held["difference of seeds"] < 0.85 * trials


def test_the_seeds_that_would_tell_are_those_of_the_tables_of_power():
    # Cohen 1988, two-sided 5 %, power 80 %: 10 and 34 pairs, or 17 and 64 on each side, for 1 and 0.5 deviations.
    assert [seeds_needed(effect, [1.0]) for effect in (1.0, 0.5)] == [10, 34]
    assert [seeds_needed(effect, [1.0, 1.0]) for effect in (1.0, 0.5)] == [17, 64]
    assert seeds_needed(0.2, [1.0]) is None
    assert seeds_needed(0.0, [0.0]) is None


def test_a_verdict_says_how_many_seeds_would_tell():
    # Differences of 0, 1 and 2 points: one deviation, for which the tables have 10 pairs.
    found = difference({1: 0.50, 2: 0.51, 3: 0.52}, {1: 0.50, 2: 0.50, 3: 0.50})
    assert (found.seeds, found.verdict) == (3, "3 seeds cannot tell; about 10 would")
    # No number of seeds makes up for 50 test images.
    found = difference({1: 0.50, 2: 0.51, 3: 0.52}, {1: 0.50, 2: 0.50, 3: 0.50}, images=50)
    assert found.verdict == "3 seeds cannot tell; 100 would not either"
