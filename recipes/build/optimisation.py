"""The optimiser and learning-rate schedule of a recipe."""

from __future__ import annotations

import torch

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training import schedules
from mixsize.algorithms.training.epoch_schedule import EpochSchedule, elapsed_fraction
from mixsize.algorithms.training.schedules import Schedule
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.config import schema
from mixsize.recipes.planning.regimes import epochs_of


def build_optimizer(
    config: schema.Optimizer, module: torch.nn.Module, regime: Regime | Progression
) -> torch.optim.Optimizer:
    """The optimiser, with the learning rate scaled and the weight decay applied as the recipe says.

    Raises:
        ValueError: linear scaling in a regime of phases.
    """
    lr = config.lr
    if config.lr_scaling != "none":
        if isinstance(regime, Progression):
            raise ValueError(
                f"optimizer.lr_scaling: {config.lr_scaling} needs one mean batch for the whole run, which phases do "
                "not have; use none, and regime.phases[].lr_factor"
            )
        lr *= regime.lr_scale if config.lr_scaling == "linear" else regime.lr_scale_by_sample
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
