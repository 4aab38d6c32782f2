"""The files and loaders of a recipe."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode import augment
from mixsize.ffcv_loaders.decode.augment import Augment
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.recipes.config import schema
from mixsize.recipes.config.regimes import ProgressiveRegime
from mixsize.system.ranks import process_rank

T = TypeVar("T")


def open_data(data: schema.Data) -> tuple[Beton, Beton]:
    """Open the training and the evaluation file.

    Raises:
        ValueError: the files have different classes.
        BetonError: a file cannot be read.
    """
    train, evaluation = Beton.open(data.train), Beton.open(data.eval)
    check_same_classes(train, evaluation)
    return train, evaluation


def check_same_classes(train: Beton, evaluation: Beton) -> None:
    """Refuse files of different classes, as far as they name them.

    Raises:
        ValueError: names the classes that only one of the files has.
    """
    if train.info and evaluation.info and train.info.classes != evaluation.info.classes:
        differing = sorted(set(train.info.classes) ^ set(evaluation.info.classes)) or ["their order"]
        raise ValueError(f"data.train and data.eval have different classes: {', '.join(differing[:10])}")


def count_classes(recipe: schema.Recipe, *files: Beton) -> int:
    """The number of classes: the recipe's, or else the first file's.

    Raises:
        ValueError: a file has a label outside of them.
    """
    num_classes = recipe.model.num_classes or files[0].num_classes
    for beton in files:
        beton.check_labels(num_classes)
    return num_classes


def count_by_class(images: Beton, num_classes: int) -> dict[str, int]:
    """Images of each class by its name, or by its number in a file without names, in the order of the labels."""
    names = images.info.classes if images.info else ()
    counts = np.bincount(images.labels, minlength=num_classes).tolist()
    return {names[label] if label < len(names) else str(label): count for label, count in enumerate(counts)}


def sizes_drawn(regime: Regime | Progression) -> list[int]:
    """Image sizes that a regime may draw, in pixels, ascending."""
    return sorted({choice.size_px for part in regime.regimes for choice in part.choices})


def build_augment(config: schema.Augment | schema.EvalTransform) -> Augment:
    """The augmentation or evaluation transform of a recipe."""
    if isinstance(config, schema.PadCrop):
        return augment.PadCrop(config.padding, config.flip, config.policy, config.cutout_px, *_changes(config))
    if isinstance(config, schema.RandomResizedCrop):
        return augment.RandomResizedCrop(config.scale, config.ratio, config.flip, config.policy, *_changes(config))
    if isinstance(config, schema.Resize):
        return augment.Resize(config.flip, config.policy, *_changes(config))
    if isinstance(config, schema.EvalResize):
        return augment.Resize()
    assert isinstance(config, schema.CenterCrop)
    return augment.CenterCrop(filled(config.fraction))


def build_loader(
    recipe: schema.Recipe, train: Beton, regime: Regime | Progression, device: torch.device
) -> MixSizeLoader:
    """The training loader."""
    return MixSizeLoader(
        train,
        regime,
        augment=build_augment(recipe.data.augment),
        mean=filled(recipe.data.mean),
        std=filled(recipe.data.std),
        seed=recipe.seed,
        num_workers=recipe.loader.num_workers,
        batches_ahead=recipe.loader.batches_ahead,
        min_oversampling=_or_infinity(recipe.loader.min_oversampling),
        interpolation=recipe.loader.interpolation,
        window_mib=recipe.loader.window_mib,
        device=device,
        channels_last=recipe.channels_last,
    )


def build_calibration_loader(
    recipe: schema.Recipe, train: Beton, size_px: int, batch_size: int, device: torch.device
) -> MixSizeLoader:
    """Training images at one size, in random order, one view of each, the same at every call.

    Under ``calibration.transform: train`` they are cropped and mirrored as in training, in a progression as in its last
    phase, but without policy, colour jitter, erasing and cutout: the paper's released code leaves out what it has of
    them.

    Args:
        recipe: with a calibration.
        train: the training file.
        size_px: image size in pixels.
        batch_size: over all ranks, at most; a multiple of the ranks is used.
        device: of the batches.
    """
    assert recipe.calibration is not None
    if recipe.calibration.transform == "train":
        transform, reading = _crops_and_flips(recipe), recipe.loader
    else:
        transform, reading = recipe.data.eval_transform, recipe.evaluation
    world_size = process_rank()[1]
    batch_size = max(min(batch_size, train.num_samples) // world_size, 1) * world_size
    return MixSizeLoader(
        train,
        Regime.fixed(Base(size_px, batch_size)),
        augment=build_augment(transform),
        mean=filled(recipe.data.mean),
        std=filled(recipe.data.std),
        seed=recipe.seed,
        num_workers=recipe.loader.num_workers,
        min_oversampling=_or_infinity(reading.min_oversampling),
        interpolation=filled(reading.interpolation),
        device=device,
        channels_last=recipe.channels_last,
    )


def build_eval_loader(
    recipe: schema.Recipe, images: Beton, size_px: int, batch_size: int, device: torch.device
) -> EvalLoader:
    """Each image once, at one size.

    Args:
        recipe: with its preparation.
        images: the evaluation file.
        size_px: image size in pixels.
        batch_size: over all ranks.
        device: of the batches.
    """
    return EvalLoader(
        images,
        size_px,
        max(1, batch_size // process_rank()[1]),
        augment=build_augment(recipe.data.eval_transform),
        mean=filled(recipe.data.mean),
        std=filled(recipe.data.std),
        num_workers=recipe.loader.num_workers,
        min_oversampling=_or_infinity(recipe.evaluation.min_oversampling),
        interpolation=filled(recipe.evaluation.interpolation),
        device=device,
        channels_last=recipe.channels_last,
    )


def _changes(
    config: schema.PadCrop | schema.RandomResizedCrop | schema.Resize,
) -> tuple[augment.Magnitude | None, augment.ColorJitter | None, float]:
    return config.magnitude, config.color_jitter, config.erasing


def _crops_and_flips(recipe: schema.Recipe) -> schema.Augment:
    config, regime = recipe.data.augment, recipe.regime
    if isinstance(config, schema.CenterCrop):
        return config
    plain = {"policy": "none", "magnitude": None, "color_jitter": None, "erasing": 0.0}
    if isinstance(config, schema.PadCrop):
        return config.model_copy(update={**plain, "cutout_px": 0})
    if isinstance(config, schema.RandomResizedCrop) and isinstance(regime, ProgressiveRegime) and regime.phases:
        return config.model_copy(update={**plain, "scale": regime.phases[-1].crop_scale or config.scale})
    return config.model_copy(update=plain)


def filled(value: T | None) -> T:
    """A value that a recipe may leave open, of a recipe with its preparation."""
    assert value is not None, "the recipe is without its preparation"
    return value


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
