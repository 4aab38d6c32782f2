"""The learning-rate schedule of a recipe's run."""

from __future__ import annotations

from collections.abc import Callable

from composer.core import State

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.training.epoch_schedule import EpochSchedule, elapsed_fraction
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.config import schema
from mixsize.recipes.planning.schedule import build_schedule, schedule_of_run

#: Powers of a step's batch over the base's batch.
_BY_STEP = {"linear_by_step": 1.0, "sqrt_by_step": 0.5}


def build_epoch_schedule(
    recipe: schema.Recipe,
    regime: Regime | Progression,
    images: int,
    clock: TrainingClock,
    sampling: MixSizeSampling,
) -> EpochSchedule:
    """The algorithm that sets the learning rate, by epochs or by the elapsed fraction of a run of given seconds.

    Args:
        recipe: the recipe.
        regime: the regime.
        images: in the training data.
        clock: counts the seconds of a run whose length is a time.
        sampling: knows the batch of each step, which may scale its rate.
    """
    length, unit = recipe.duration
    factor = _factor_of_step(recipe, regime, sampling)
    if isinstance(recipe.schedule, schema.Constant):
        return EpochSchedule(build_schedule(recipe, 1.0), factor=factor)
    if unit == "sec":
        return EpochSchedule(build_schedule(recipe, 1.0), elapsed_fraction(length, clock), factor)
    return EpochSchedule(schedule_of_run(recipe, regime, images), factor=factor)


def _factor_of_step(
    recipe: schema.Recipe, regime: Regime | Progression, sampling: MixSizeSampling
) -> Callable[[State], float] | None:
    power = _BY_STEP.get(recipe.optimizer.lr_scaling)
    if power is None:
        return None

    def factor(state: State) -> float:
        assert sampling.last_shape is not None
        return (sampling.last_shape[1] / regime.base.batch_size) ** power

    return factor
