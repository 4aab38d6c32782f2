"""Lengths of runs against the plans of their epochs."""

from __future__ import annotations

import math

import pytest

from mixsize.algorithms.regime.plan import plan_length
from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.spans import spans_of

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
