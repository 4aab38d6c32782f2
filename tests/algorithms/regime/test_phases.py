"""Phases of mixed sizes, a shifting mixture and stages of equal compute, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mixsize.algorithms.regime.phases import Phase, steps_of_a_line, whole_epochs
from mixsize.algorithms.regime.plan import check_plannable, plan_epoch, plan_length
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import shapes_of
from mixsize.algorithms.regime.spans import spans_of

SMALL, LARGE = {16: 0.75, 32: 0.25}, {32: 0.5, 64: 0.5}


def shares(progression, epoch):
    return {choice.size_px: choice.share for choice in progression.at_epoch(epoch).choices}


# ---- mixtures ----


def test_a_phase_of_several_sizes_draws_each_at_the_bases_budget():
    phases = (Phase({32: 0.5, 16: 0.5}, 2), Phase({16: 0.25, 32: 0.75}, 2, mode="D+"), Phase(32, 1))
    progression = Progression(Base(32, 64), phases)
    # B+: 64 * (32 / 16)^2 = 256 images of 16 px; D+: 4 views of each of 64
    drawn = [
        [(c.size_px, c.batch_size, c.duplicates, c.share) for c in regime.choices] for regime in progression.regimes
    ]
    assert drawn == [
        [(32, 64, 1, 0.5), (16, 256, 1, 0.5)],
        [(32, 64, 1, 0.75), (16, 64, 4, 0.25)],
        [(32, 64, 1, 1.0)],
    ]
    assert {choice.pixels for regime in progression.regimes for choice in regime.choices} == {32 * 32 * 64}
    # 512 of 1,024 images are 8 batches of 64 and 2 of 256; 256 and 768 images are 4 and 12 batches of 64
    spans = list(spans_of(progression, 1024, 0, epochs=5))
    assert [(span.epochs, span.steps) for span in spans] == [(2, (8, 2)), (2, (12, 4)), (1, (16,))]
    plan = plan_epoch(progression.at_epoch(3), 1024, seed=0, epoch=3)
    assert sorted(zip(plan.size_px.tolist(), plan.duplicates.tolist(), strict=True)) == [(16, 4)] * 4 + [(32, 1)] * 12
    assert len(set(plan.samples.tolist())) == 1024


def test_one_size_may_fill_the_budget_with_duplicates():
    (choice,) = Progression(Base(32, 64), (Phase(16, 1, mode="D+"),)).regimes[0].choices
    assert (choice.batch_size, choice.duplicates) == (64, 4)


def test_a_named_distribution_and_shares_of_steps_are_a_regimes_own():
    base = Base(32, 64)
    progression = Progression(base, (Phase("s28", 1, share_of="steps"),), rounding="pow2", batch_multiple=2)
    expected = Regime.from_sizes("s28", base, "B+", share_of="steps", rounding="pow2", batch_multiple=2)
    assert progression.regimes == (expected,)


def test_sizes_drawn_by_epoch_are_those_of_the_plans_in_every_phase():
    phases = (Phase(32, 3), Phase({32: 0.5, 16: 0.5}, 80, draw="epoch"), Phase({16: 0.5, 24: 0.5}, 2, draw="epoch"))
    progression = Progression(Base(32, 64), phases)
    spans = list(spans_of(progression, 5000, 3, epochs=150))
    assert sum(span.epochs for span in spans) == 150
    lengths = [span.steps_per_epoch for span in spans for _ in range(int(span.epochs))]
    assert lengths == [plan_length(progression.at_epoch(epoch), 5000, 3, epoch) for epoch in range(150)]
    drawn = [plan_epoch(progression.at_epoch(epoch), 5000, 3, epoch).size_px for epoch in range(3, 83)]
    assert all(len(set(sizes.tolist())) == 1 for sizes in drawn)
    assert 38 <= sum(sizes[0] == 16 for sizes in drawn) <= 42


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase({32: 0.5, 16: 0.4}, 1), r"phases\[1\]: the shares sum to 0.9"),
        (Phase("s29", 1), r"phases\[1\].size_px is 's29'; it must be one of s28"),
        (Phase({32: 1.5}, 1), r"the share of 32 px in phases\[1\].size_px is 1.5"),
        (Phase({0: 1.0}, 1), r"a size in phases\[1\].size_px is 0"),
        (Phase({}, 1), r"phases\[1\]: the regime has no choices"),
        (Phase({32: 1.0}, 1, batch_size=8), r"phases\[1\].batch_size is 8; several sizes have batches fitted"),
        (Phase(32, 1, mode="table"), r"phases\[1\]: mode is 'table'"),
        (Phase(32, 1, draw="run"), r"phases\[1\]: draw is 'run'"),
    ],
)
def test_what_is_no_mixture_is_refused_with_its_phase(phase, words):
    with pytest.raises(ValueError, match=words):
        Progression(Base(32, 8), (Phase(32, 1), phase))


# ---- a shift ----


def test_a_mixture_shifts_in_a_line_between_two_epochs():
    shift = Progression.shift(Base(32, 64), SMALL, LARGE, begin_epoch=2, end_epoch=6)
    assert [shares(shift, epoch) for epoch in (0, 1, 2)] == [SMALL] * 3
    # A quarter, half and three quarters of the way
    assert shares(shift, 3) == {16: 0.5625, 32: 0.3125, 64: 0.125}
    assert shares(shift, 4) == {16: 0.375, 32: 0.375, 64: 0.25}
    assert shares(shift, 5) == {16: 0.1875, 32: 0.4375, 64: 0.375}
    assert [shares(shift, epoch) for epoch in (6, 7, 900)] == [LARGE] * 3
    assert shift.starts == (0, 3, 4, 5, 6)


def test_a_shift_has_so_many_stages_however_long_it_is():
    shift = Progression.shift(Base(32, 64), SMALL, LARGE, begin_epoch=0, end_epoch=1000, stages=4)
    # Stages change half-way between their ends: after epochs 125, 375, 625 and 875
    assert shift.starts == (0, 126, 375, 626, 875)
    assert [shares(shift, epoch)[32] for epoch in (0, 200, 500, 700, 1000)] == [0.25, 0.3125, 0.375, 0.4375, 0.5]
    longest = Progression.shift(Base(32, 64), SMALL, LARGE, begin_epoch=0, end_epoch=999_999)
    assert len(longest.phases) == 21
    assert len(shapes_of(longest)) == 3


def test_three_hundred_phases_are_planned_and_their_steps_are_those_of_the_plans():
    shift = Progression.shift(Base(32, 64), SMALL, LARGE, begin_epoch=0, end_epoch=299, stages=1000)
    assert len(shift.phases) == 300
    check_plannable(shift, 10**6)
    spans = list(spans_of(shift, 10**6, 0, epochs=310))
    assert [span.regime for span in spans] == list(range(300))
    assert sum(span.epochs for span in spans) == 310
    for epoch in (0, 1, 150, 299, 305):
        assert spans[min(epoch, 299)].steps_per_epoch == plan_length(shift.at_epoch(epoch), 10**6, 0, epoch)
    assert {shape.size_px for shape in shapes_of(shift)} == {16, 32, 64}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"begin_epoch": 3, "end_epoch": 3}, "the shift goes from epoch 3 to 3; it must end after it begins"),
        ({"end_epoch": 10**7}, "end_epoch is 10000000"),
        ({"stages": 0}, "stages is 0; it must be a whole number from 1 to 1000"),
        ({"start": {16: 0.5}}, "start: the shares sum to 0.5"),
        ({"end": "s29"}, "end.size_px is 's29'"),
        ({"mode": "fixed"}, "start: mode is 'fixed'"),
        ({"end": {512: 1.0}}, "end: the batch at 512 px rounds to 0"),
    ],
)
def test_what_is_no_shift_is_refused(arguments, words):
    good = {"start": SMALL, "end": LARGE, "begin_epoch": 0, "end_epoch": 5}
    with pytest.raises(ValueError, match=words):
        Progression.shift(Base(32, 64), **{**good, **arguments})


def test_values_of_a_line_are_found_without_going_through_its_epochs():
    asked = []

    def value(epoch):
        asked.append(epoch)
        return round(epoch / 10**6 * 3)

    found = list(steps_of_a_line(value, 10**6 + 1))
    # 0.5, 1.5 and 2.5 are halves, which go to the even number: 0, 2 and 2
    assert found == [(0, 166_667), (1, 333_333), (2, 333_334), (3, 166_667)]
    assert len(asked) < 200


# ---- stages of equal compute ----


def test_efficienttrain_plus_plus_has_ten_stages_of_equal_pixels():
    """ResNet-50 in its released code: 96 px twice, 160 px and 224 px four times, 200 epochs of 224 px."""
    sizes = [96] * 2 + [160] * 4 + [224] * 4
    # A tenth of 200 epochs of 224 px: 20 (224 / 96)^2 = 108.9 epochs, 20 (224 / 160)^2 = 39.2, 20; in all 454.6
    lengths = whole_epochs([0.1] * 10, 455, [size**2 for size in sizes])
    assert lengths == [109, 109, 39, 39, 40, 39, 20, 20, 20, 20]
    pixels = np.multiply(lengths, np.square(sizes)) / 224**2
    assert pixels == pytest.approx(20, abs=1)  # Each of them to an epoch's rounding, and all together:
    assert sum(pixels) == pytest.approx(200, rel=0.002)


def test_fractions_of_epochs_end_at_the_nearest_whole_epoch():
    assert whole_epochs([0.333, 0.333, 0.334], 16) == [5, 6, 5]
    assert whole_epochs([0.333, 0.333, 0.333], 90) == [30, 30, 30]
    assert whole_epochs([0.1, 0.9], 3) == [0, 3]
