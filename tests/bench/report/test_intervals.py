"""Intervals are Student's and Welch's, and say no more than they may."""

from __future__ import annotations

import pytest
from scipy import stats

from mixsize.bench.report.intervals import difference, estimate

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
    assert difference({seed + 10: value for seed, value in raised.items()}, baseline).verdict == "no difference shown"


def test_equal_values_show_no_difference():
    assert difference(A, A).verdict == "no difference shown"
    assert difference({1: 0.5, 2: 0.5}, {3: 0.5, 4: 0.5}).verdict == "no difference shown"
    assert difference({1: 0.6, 2: 0.6}, {3: 0.5, 4: 0.5}).verdict == "higher"
