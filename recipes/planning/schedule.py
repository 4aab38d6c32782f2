"""The learning-rate schedule of a recipe."""

from __future__ import annotations

import math

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.regime.spans import part_of_pixels
from mixsize.algorithms.training import schedules
from mixsize.algorithms.training.schedules import Schedule
from mixsize.recipes.config import schema
from mixsize.recipes.planning.regimes import spans_of_run


def schedule_of_run(recipe: schema.Recipe, regime: Regime | Progression, images: int) -> Schedule:
    """The learning rate as a function of the position in epochs, in a run whose length is in epochs or in steps.

    Args:
        recipe: the recipe.
        regime: the regime.
        images: in the training data.

    Raises:
        ValueError: a warm-up that the run does not outlast, more than a million epochs, or too few images.
    """
    spans = spans_of_run(recipe, regime, images)
    epochs = math.fsum(span.epochs for span in spans)
    schedule = build_schedule(recipe, epochs)
    if not isinstance(recipe.schedule, schema.Cosine | schema.OneCycle) or recipe.schedule.follows == "epochs":
        return schedule
    done = part_of_pixels(regime, spans)
    return lambda position: schedule(epochs * done(position))


def build_schedule(recipe: schema.Recipe, epochs: float) -> Schedule:
    """The learning rate as a function of the position in epochs, in a run of ``epochs``.

    Raises:
        ValueError: a warm-up that the run does not outlast.
    """
    config = recipe.schedule
    if isinstance(config, schema.MultiStep):
        return schedules.multistep(config.milestones, config.factors, config.warmup_epochs)
    if isinstance(config, schema.Step):
        return schedules.step_decay(config.every_epochs, config.factor, config.warmup_epochs)
    if isinstance(config, schema.Cosine):
        try:
            return schedules.cosine(epochs, config.final_factor, config.warmup_epochs)
        except ValueError as error:
            raise ValueError(f"schedule: {error}") from error
    if isinstance(config, schema.OneCycle):
        return schedules.one_cycle(epochs, config.peak_fraction, config.start_factor, config.final_factor)
    assert isinstance(config, schema.Constant)
    return schedules.constant(config.warmup_epochs)
