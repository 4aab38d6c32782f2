"""The optimiser and learning-rate schedule of a recipe."""

from __future__ import annotations

import torch

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.epoch_schedule import EpochSchedule, elapsed_fraction
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.config import schema
from mixsize.recipes.planning.regimes import epochs_of
from mixsize.recipes.planning.schedule import build_schedule


def build_optimizer(
    config: schema.Optimizer, module: torch.nn.Module, regime: Regime | Progression
) -> torch.optim.Optimizer:
    """The optimiser, with the learning rate scaled and the weight decay applied as the recipe says."""
    lr = config.lr
    if config.lr_scaling != "none":
        assert isinstance(regime, Regime)  # The recipe refuses it for phases.
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
