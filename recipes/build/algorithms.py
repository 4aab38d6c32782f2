"""The algorithms of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from composer.algorithms import GradientClipping
from composer.core import Algorithm

from mixsize.algorithms.averaging.model_ema import ModelEMA
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.execution.preflight import Preflight
from mixsize.algorithms.mixing.mixing import Mixing
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.sampling.progressive_resize import ProgressiveResize
from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.training.curriculum import Curriculum
from mixsize.algorithms.training.epoch_schedule import EpochSchedule
from mixsize.algorithms.training.step_seed import StepSeed
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.data import build_calibration_loader
from mixsize.recipes.build.optimisation import build_epoch_schedule
from mixsize.recipes.build.strengths import build_curriculum
from mixsize.recipes.callbacks.progress import passing_bar
from mixsize.recipes.config import schema
from mixsize.recipes.config.composer_arguments import make
from mixsize.recipes.config.composer_table import ALGORITHMS
from mixsize.recipes.config.regimes import ProgressiveRegime


@dataclass(frozen=True)
class Algorithms:
    """The algorithms of a run; None for those that the recipe leaves out.

    Attributes:
        composers: those of the recipe's section ``algorithms``, without the average and without those that the network
            was built with.
    """

    sampling: MixSizeSampling
    schedule: EpochSchedule
    mixing: Mixing | None
    clipping: GradientClipping | None
    smoothing: GradSmoothing | None
    calibration: BNCalibrate | None
    preflight: Preflight | None
    curriculum: Curriculum | None
    ema: ModelEMA | None
    composers: tuple[Algorithm, ...]

    def in_order(self) -> list[Algorithm]:
        """As the Trainer takes them.

        Composer reverses the order at events whose names begin with ``after``. Its own algorithms stand first, so that
        they change batches that the plan was compared with, and draw from the step's seed. ``GradSmoothing`` finds its
        own place, before clipping.
        """
        first = (*self.composers, self.mixing, self.clipping, StepSeed(), self.sampling, self.schedule)
        companions = (self.curriculum, self.smoothing, self.calibration, self.preflight, self.ema)
        return [one for one in (*first, *companions) if one is not None]


def build_algorithms(
    recipe: schema.Recipe,
    model: EngineClassifier,
    regime: Regime | Progression,
    train: Beton,
    num_classes: int,
    clock: TrainingClock,
    device: torch.device,
) -> Algorithms:
    """The algorithms; ``clock`` counts the seconds of a run whose length is a time."""
    sampling = _build_sampling(recipe.regime, regime)
    mixing = _build_mixing(recipe.mixing, num_classes)
    return Algorithms(
        sampling=sampling,
        schedule=build_epoch_schedule(recipe, regime, train.num_samples, clock, sampling),
        mixing=mixing,
        clipping=_build_clipping(recipe.optimizer),
        smoothing=_build_smoothing(recipe.smoothing),
        calibration=_build_calibration(recipe, train, device),
        preflight=_build_preflight(recipe, device),
        curriculum=build_curriculum(recipe.model, regime, model, [] if mixing is None else [mixing]),
        ema=make("algorithms", "ema", recipe.algorithms["ema"]) if "ema" in recipe.algorithms else None,
        composers=tuple(
            make("algorithms", name, arguments)
            for name, arguments in recipe.algorithms.items()
            if name != "ema" and not (name in ALGORITHMS and ALGORITHMS[name].surgery)
        ),
    )


def _build_sampling(config: schema.Regime, regime: Regime | Progression) -> MixSizeSampling:
    if not isinstance(config, ProgressiveRegime):
        return MixSizeSampling()
    assert isinstance(regime, Progression)
    return ProgressiveResize(
        regime,
        batch_norm=config.batch_norm,
        freeze_steps=config.freeze_steps,
        reset_batches=config.reset_batches,
    )


def _build_mixing(config: schema.Mixing | None, num_classes: int) -> Mixing | None:
    if config is None:
        return None
    return Mixing(num_classes, config.mixup, config.cutmix, prob=config.prob, switch_prob=config.switch_prob)


def _build_clipping(config: schema.Optimizer) -> GradientClipping | None:
    return None if config.clip_norm is None else GradientClipping("norm", config.clip_norm)


def _build_smoothing(config: schema.Smoothing | None) -> GradSmoothing | None:
    return None if config is None else GradSmoothing(config.alpha, config.eps, per_size=config.per_size)


def _build_calibration(recipe: schema.Recipe, train: Beton, device: torch.device) -> BNCalibrate | None:
    if recipe.calibration is None:
        return None
    batch_size, num_batches = recipe.evaluation.batch_size, recipe.calibration.batches

    def loader_for(size_px: int) -> Iterable[Any]:
        loader = build_calibration_loader(recipe, train, size_px, batch_size, device)
        if not recipe.progress_bar:
            return loader
        return passing_bar(f"calibrating at {size_px}px", min(num_batches, len(loader)), loader)

    return BNCalibrate(loader_for, num_batches=num_batches, when=recipe.calibration.when)


def _build_preflight(recipe: schema.Recipe, device: torch.device) -> Preflight | None:
    """By default on a GPU only, where the first step of a shape is slow."""
    wanted = recipe.execution.preflight
    if not (device.type == "cuda" if wanted is None else wanted):
        return None
    # cuDNN then tunes its convolutions for each shape, which the visit does before training.
    torch.backends.cudnn.benchmark = True
    return Preflight(recipe.channels_last, recipe.progress_bar)
