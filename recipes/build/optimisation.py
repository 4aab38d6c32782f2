"""The optimiser and learning-rate schedule of a recipe."""

from __future__ import annotations

import torch

from mixsize.algorithms.regime.plan import plan_length
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training import schedules
from mixsize.algorithms.training.epoch_schedule import EpochSchedule, elapsed_fraction
from mixsize.algorithms.training.schedules import Schedule
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.config import schema


def build_optimizer(
    config: schema.Optimizer, module: torch.nn.Module, regime: Regime | Progression
) -> torch.optim.Optimizer:
    """The optimiser, with the learning rate scaled and the weight decay applied as the recipe says.

    Raises:
        ValueError: linear scaling in a regime of phases.
    """
    lr = config.lr
    if config.lr_scaling == "linear":
        if isinstance(regime, Progression):
            raise ValueError(
                "optimizer.lr_scaling: linear needs one mean batch for the whole run, which phases do not have; use "
                "none, and regime.phases[].lr_factor"
            )
        lr *= regime.lr_scale
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.decay == "weights":
        # Biases and the scales and shifts of normalisation layers are the parameters of one dimension.
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, schema.Sgd):
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    assert isinstance(config, schema.AdamW)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps)


def build_epoch_schedule(
    recipe: schema.Recipe, regime: Regime | Progression, images: int, clock: TrainingClock
) -> EpochSchedule:
    """The algorithm that sets the learning rate, by epochs or by the elapsed fraction of a run of given seconds."""
    if isinstance(recipe.schedule, schema.Constant):
        return EpochSchedule(build_schedule(recipe, 1.0))
    length, unit = recipe.duration
    if unit == "sec":
        return EpochSchedule(build_schedule(recipe, 1.0), elapsed_fraction(length, clock))
    return EpochSchedule(build_schedule(recipe, epochs_of(recipe, regime, images)))


def build_schedule(recipe: schema.Recipe, epochs: float) -> Schedule:
    """The learning rate as a function of the position in epochs, in a run of ``epochs``."""
    config = recipe.schedule
    if isinstance(config, schema.MultiStep):
        return schedules.multistep(config.milestones, config.factors, config.warmup_epochs)
    if isinstance(config, schema.Cosine):
        return schedules.cosine(epochs, config.final_factor, config.warmup_epochs)
    if isinstance(config, schema.OneCycle):
        return schedules.one_cycle(epochs, config.peak_fraction, config.start_factor, config.final_factor)
    assert isinstance(config, schema.Constant)
    return schedules.constant(config.warmup_epochs)


def epochs_of(recipe: schema.Recipe, regime: Regime | Progression, images: int) -> float:
    """The length of a run in epochs; a last epoch that is cut short counts as a fraction.

    Args:
        recipe: its length is in epochs or in steps.
        regime: the regime.
        images: in the training data.
    """
    length, unit = recipe.duration
    assert unit != "sec"
    if unit == "ep":
        return float(length)
    epoch = 0
    while length > (steps := plan_length(regime.at_epoch(epoch), images, recipe.seed, epoch)):
        length -= steps
        epoch += 1
    return epoch + length / steps
