"""Values of strengths by epoch, by hand."""

from __future__ import annotations

import pytest

from mixsize.algorithms.regime.phases import Phase
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Base, Regime

BASE = Base(32, 8)


def values(progression, name, epochs):
    return [progression.strength_at(name, epoch) for epoch in epochs]


def test_a_number_holds_and_a_pair_goes_from_the_first_to_the_last_epoch_of_its_phase():
    phases = (
        Phase(16, 3, strengths={"mixup": 0.2, "dropout": (0.1, 0.3)}),
        Phase(32, 5, strengths={"mixup": (0, 0.4)}),
    )
    progression = Progression(BASE, phases)
    assert values(progression, "mixup", range(8)) == pytest.approx([0.2, 0.2, 0.2, 0, 0.1, 0.2, 0.3, 0.4])
    assert values(progression, "dropout", range(4)) == pytest.approx([0.1, 0.2, 0.3, None])
    assert values(progression, "magnitude", (0, 5)) == [None, None]
    assert progression.strengths == ("dropout", "mixup")


def test_ends_are_exact_and_hold_after_the_last_phases_end():
    progression = Progression(BASE, (Phase(32, 7, strengths={"magnitude": (0.1, 0.7), "cutmix": 0.3}),))
    assert values(progression, "magnitude", (0, 6, 7, 500)) == [0.1, 0.7, 0.7, 0.7]
    assert set(values(progression, "cutmix", range(9))) == {0.3}


def test_a_phase_of_one_epoch_has_the_first_value():
    progression = Progression(BASE, (Phase(16, 1, strengths={"dropout": (0.1, 0.5)}), Phase(32, 1)))
    assert progression.strength_at("dropout", 0) == 0.1


def test_strengths_of_a_run_pass_through_its_phases_in_a_line():
    phases = (Phase(16, 6, strengths={"mixup": 0.5}), Phase(32, 1))
    run = Progression(BASE, phases).until(10).with_strengths({"magnitude": (0, 9), "mixup": 0.1})
    assert values(run, "magnitude", range(10)) == pytest.approx(list(range(10)))
    assert values(run, "mixup", range(10)) == [0.5] * 6 + [0.1] * 4
    ramp = Progression.ramp(BASE, 16, 32, begin_epoch=0, end_epoch=4, step_px=4).with_strengths({"dropout": (0, 0.4)})
    assert values(ramp, "dropout", range(6)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_a_run_that_ends_in_its_last_phase_has_the_last_value_there():
    progression = Progression(BASE, (Phase(16, 2), Phase(32, 30, strengths={"dropout": (0, 0.4)})))
    assert values(progression.until(7), "dropout", range(2, 7)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert progression.until(1).phases[1].epochs == 1  # Such a run does not reach the phase.


def test_efficientnetv2s_four_stages_hold_their_values():
    """EfficientNetV2, table 6: sizes and strengths from S0 and phi0 to Se and phie in four equal stages."""
    stages = [(128, 5, 0.1), (185, 25 / 3, 1 / 6), (243, 35 / 3, 7 / 30), (300, 15, 0.3)]
    phases = tuple(Phase(size, 87, strengths={"magnitude": m, "dropout": d}) for size, m, d in stages)
    progression = Progression(Base(300, 64), phases)
    assert values(progression, "magnitude", (0, 86, 87, 174, 347)) == [5, 5, 25 / 3, 35 / 3, 15]
    assert values(progression, "dropout", (0, 87, 261)) == [0.1, 1 / 6, 0.3]


def test_strengths_belong_to_what_a_run_must_keep():
    plain, mixed = (Progression(BASE, (Phase(32, 1, strengths=given),)) for given in ({}, {"mixup": 0.2}))
    assert plain.digest() != mixed.digest()
    assert plain != mixed


def test_a_regime_leaves_all_as_they_are():
    assert Regime.fixed(BASE).strength_at("dropout", 3) is None


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ({"mixip": 0.1}, r"a name in phases\[0\].strengths is 'mixip'; it must be one of magnitude, mixup"),
        ({"dropout": 1.0}, r"phases\[0\].strengths.dropout is 1.0; it must be a number in \[0, 1\), or two of them"),
        (
            {"magnitude": (1, -1)},
            r"strengths.magnitude is \(1, -1\); it must be a number of at least 0, or two",
        ),
        ({"mixup": (0, 1, 2)}, "strengths.mixup is"),
        ({"mixup": float("nan")}, "strengths.mixup is nan"),
        ({"cutmix": float("inf")}, "strengths.cutmix is inf"),
        ({"drop_path": True}, "strengths.drop_path is True"),
        ([], r"phases\[0\].strengths is \[\]; it must be a mapping"),
    ],
)
def test_what_is_no_strength_is_refused(strengths, words):
    with pytest.raises(ValueError, match=words):
        Progression(BASE, (Phase(32, 1, strengths=strengths),))
