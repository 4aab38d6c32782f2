"""Lengths of runs against the plans of their epochs."""

from __future__ import annotations

import math

import pytest

from mixsize.algorithms.regime.plan import plan_epoch, plan_length
from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.spans import part_of_pixels, spans_of

BASE = Base(32, 64)
REGIMES = {
    "step": Regime.from_sizes("s28", BASE, "B+"),
    "epoch": Regime.from_sizes("s28", BASE, "B+", draw="epoch"),
    "phases": Progression(BASE, (Phase(16, 3), Phase(24, 2), Phase(32, 1))),
}


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("epochs", [1, 2, 4, 150])
def test_a_run_of_epochs_has_the_steps_of_its_plans(name, epochs):
    regime = REGIMES[name]
    steps = sum(plan_length(regime.at_epoch(epoch), 5000, 3, epoch) for epoch in range(epochs))
    spans = list(spans_of(regime, 5000, 3, epochs=epochs))
    assert sum(span.epochs for span in spans) == epochs
    assert sum(span.epochs * span.steps_per_epoch for span in spans) == steps


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("steps", [1, 19, 20, 60, 61, 70, 5000])
def test_a_run_of_steps_has_the_epochs_of_its_plans(name, steps):
    regime, left, epoch = REGIMES[name], steps, 0
    while left > (length := plan_length(regime.at_epoch(epoch), 5000, 3, epoch)):
        left -= length
        epoch += 1
    spans = list(spans_of(regime, 5000, 3, steps=steps))
    assert math.fsum(span.epochs for span in spans) == pytest.approx(epoch + left / length)
    assert math.fsum(span.epochs * span.steps_per_epoch for span in spans) == pytest.approx(steps)


def test_a_phase_belongs_to_its_regime():
    spans = list(spans_of(REGIMES["phases"], 5000, 3, epochs=9))
    # 5,000 images in batches of 256, 114 and 64
    assert [(span.regime, span.epochs, span.steps_per_epoch) for span in spans] == [(0, 3, 19), (1, 2, 43), (2, 4, 78)]


def test_a_run_has_at_most_a_million_epochs():
    assert sum(span.epochs for span in spans_of(REGIMES["step"], 5000, 3, epochs=10**6)) == 10**6
    for name in ("step", "phases"):
        with pytest.raises(ValueError, match="longer than 1,000,000 epochs"):
            list(spans_of(REGIMES[name], 5000, 3, epochs=10**6 + 1))


def test_the_part_of_the_pixels_follows_phases_by_hand():
    # 5,000 images in steps of 256 at 16 px, 114 at 24 px and 64 at 32 px: 19, 43 and 78 steps an epoch.
    pixels = [19 * 256 * 16**2, 43 * 114 * 24**2, 78 * 64 * 32**2]
    total = 3 * pixels[0] + 2 * pixels[1] + 4 * pixels[2]
    done = part_of_pixels(REGIMES["phases"], list(spans_of(REGIMES["phases"], 5000, 3, epochs=9)))
    expected = {
        0: 0,
        1.5: 1.5 * pixels[0],
        3: 3 * pixels[0],
        4.25: 3 * pixels[0] + 1.25 * pixels[1],
        5: 3 * pixels[0] + 2 * pixels[1],
        8: total - pixels[2],
        9: total,
        10: total,
    }
    assert [done(epoch) for epoch in expected] == pytest.approx([value / total for value in expected.values()])


def test_sizes_drawn_for_every_epoch_count_each_epochs_own_pixels():
    regime = REGIMES["epoch"]
    done = part_of_pixels(regime, list(spans_of(regime, 5000, 3, epochs=6)))
    drawn = []
    for epoch in range(6):
        plan = plan_epoch(regime, 5000, 3, epoch)
        drawn.append(int((plan.size_px**2 * plan.batch_size * plan.duplicates).sum()))
    assert len(set(drawn)) > 1
    assert [done(epoch) for epoch in range(7)] == pytest.approx([sum(drawn[:epoch]) / sum(drawn) for epoch in range(7)])


@pytest.mark.parametrize("length", [{"epochs": 7}, {"steps": 333}])
def test_epochs_of_equal_pixels_are_equal_parts(length):
    spans = list(spans_of(REGIMES["step"], 5000, 3, **length))
    epochs = sum(span.epochs for span in spans)
    done = part_of_pixels(REGIMES["step"], spans)
    assert [epochs * done(position) for position in (0, 0.3, 2, 3.75)] == pytest.approx([0, 0.3, 2, 3.75])
