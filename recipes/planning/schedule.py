"""The learning-rate schedule of a recipe."""

from __future__ import annotations

from mixsize.algorithms.training import schedules
from mixsize.algorithms.training.schedules import Schedule
from mixsize.recipes.config import schema


def build_schedule(recipe: schema.Recipe, epochs: float) -> Schedule:
    """The learning rate as a function of the position in epochs, in a run of ``epochs``.

    Raises:
        ValueError: a warm-up that the run does not outlast.
    """
    config = recipe.schedule
    if isinstance(config, schema.MultiStep):
        return schedules.multistep(config.milestones, config.factors, config.warmup_epochs)
    if isinstance(config, schema.Cosine):
        try:
            return schedules.cosine(epochs, config.final_factor, config.warmup_epochs)
        except ValueError as error:
            raise ValueError(f"schedule: {error}") from error
    if isinstance(config, schema.OneCycle):
        return schedules.one_cycle(epochs, config.peak_fraction, config.start_factor, config.final_factor)
    assert isinstance(config, schema.Constant)
    return schedules.constant(config.warmup_epochs)
