"""Learning rates by epoch, against values worked out by hand."""

from __future__ import annotations

import pytest

from mixsize.algorithms.training.schedules import constant, cosine, multistep, one_cycle, step_decay


def test_multistep_changes_at_its_milestones():
    schedule = multistep([81, 122, 164], [0.1, 0.01, 0.001])
    assert [schedule(e) for e in (0, 80.999, 81, 121.9, 122, 163.9, 164, 200)] == [
        1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001,
    ]  # fmt: skip


def test_steps_fall_by_a_factor_at_times_that_need_not_be_whole():
    schedule = step_decay(2.4, 0.97)
    # 2.4 * 145 = 348
    assert [schedule(e) for e in (0, 2.3, 2.5, 4.7, 4.9, 349)] == pytest.approx([1, 1, 0.97, 0.97, 0.9409, 0.97**145])
    assert [step_decay(2, 0.5, warmup_epochs=4)(e) for e in (1, 3, 4, 6)] == [0.25, 0.75, 0.25, 0.125]


def test_cosine_goes_down_half_a_wave():
    schedule = cosine(100, final_factor=0.1)
    assert [schedule(e) for e in (0, 50, 100, 120)] == pytest.approx([1, 0.55, 0.1, 0.1])
    # cos(pi / 3) = 1/2
    assert cosine(90)(30) == pytest.approx(0.75)


def test_one_cycle_rises_then_falls_in_straight_lines():
    schedule = one_cycle(10, peak_fraction=0.3, start_factor=0.1, final_factor=0.05)
    assert [schedule(e) for e in (0, 1.5, 3, 6.5, 10)] == pytest.approx([0.1, 0.55, 1, 0.525, 0.05])


def test_warm_up_rises_from_zero():
    assert [constant(4)(e) for e in (0, 1, 4, 9)] == pytest.approx([0, 0.25, 1, 1])
    assert [multistep([30], [0.1], 5)(e) for e in (2.5, 5, 30)] == pytest.approx([0.5, 1, 0.1])
    assert cosine(10, warmup_epochs=2)(6) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: multistep([1, 2], [0.1]), "2 milestones need as many factors, not 1"),
        (lambda: multistep([2, 2], [0.1, 0.01]), "milestones are"),
        (lambda: step_decay(0, 0.5), "every_epochs is 0"),
        (lambda: cosine(5, warmup_epochs=5), "warmup_epochs is 5"),
        (lambda: constant(-1), "warmup_epochs is -1"),
        (lambda: one_cycle(10, peak_fraction=1), "peak_fraction is 1"),
    ],
)
def test_impossible_schedules_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
