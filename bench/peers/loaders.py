"""Training images for the peers: class folders, read and augmented by torchvision and timm.

The augmentation is the recipe's, in torchvision's transforms; random numbers are PyTorch's, seeded by the Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from timm.data.dataset import ImageDataset
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.config import schema


def check_images(folder: Path, train: Beton) -> None:
    """Check by classes and numbers of images that a ``.beton`` file was written from a folder.

    Raises:
        ValueError: other classes, or another number of images in one of them.
        OSError: no such folder, or one without class folders.
    """
    found = ImageFolder(str(folder))
    if train.info is not None and list(train.info.classes) != found.classes:
        differing = sorted(set(train.info.classes) ^ set(found.classes)) or ["their order"]
        raise ValueError(f"--images {folder} and data.train have different classes: {', '.join(differing[:10])}")
    counts, expected = np.bincount(found.targets).tolist(), np.bincount(train.labels).tolist()
    if counts != expected:
        raise ValueError(
            f"--images {folder} has {len(found):,} images and data.train {train.num_samples:,}, or their classes "
            "differ in size; give the folder that data.train was written from"
        )


def timm_loader(
    folder: Path,
    regime: Regime,
    augments: Sequence[v2.Transform],
    workers: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    *,
    progressive_epochs: int | None = None,
) -> tuple[ScheduledBatchSampler, PrefetchLoader]:
    """timm's scheduled batch sampler and its loader.

    ``create_loader`` assembles the same parts, but makes its own augmentation.

    Args:
        folder: of class folders.
        regime: sizes with their batches, and the shares of the steps as the choices' weights; no duplicates.
        augments: for each of the regime's choices, to its size.
        workers: processes that decode and augment.
        mean: of each channel on the 0..1 scale.
        std: of each channel on the same scale.
        seed: of the schedule.
        progressive_epochs: length of timm's progressive schedule from the smallest size to the largest, with its
            defaults for spread and random mix; None for its constant schedule.
    """
    assert all(choice.duplicates == 1 for choice in regime.choices)
    rising = sorted(
        zip(regime.choices, regime.step_shares, augments, strict=True), key=lambda choice: choice[0].size_px
    )
    data = ImageDataset(str(folder))
    sampler = ScheduledBatchSampler(
        RandomSampler(data),
        batch_sizes=[choice.batch_size for choice, _, _ in rising],
        choice_weights=[share for _, share, _ in rising],
        seed=seed,
        drop_last=True,
        choice_schedule="constant" if progressive_epochs is None else "progressive",
        schedule_epochs=progressive_epochs,
    )
    transforms = [v2.Compose([augment, v2.PILToTensor()]) for _, _, augment in rising]
    loader = DataLoader(
        ScheduledTransformDataset(data, transforms),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=fast_collate,
        persistent_workers=workers > 0,
    )
    return sampler, PrefetchLoader(loader, mean=tuple(mean), std=tuple(std), device=torch.device("cpu"))


def torchvision_augment(config: schema.Augment, size_px: int, train: Beton) -> v2.Transform:
    """A recipe's augmentation in torchvision's transforms, to one size.

    Raises:
        ValueError: an augmentation that torchvision lacks, or pad-and-crop of images that differ in size.
    """
    parts: list[v2.Transform]
    if not isinstance(config, schema.CenterCrop) and (config.policy != "none" or config.color_jitter or config.erasing):
        raise ValueError("data.augment: the peers are given crops without policy, color_jitter and erasing")
    resize = v2.Resize((size_px, size_px), antialias=True)
    if isinstance(config, schema.RandomResizedCrop):
        parts = [v2.RandomResizedCrop((size_px, size_px), config.scale, config.ratio, antialias=True)]
    elif isinstance(config, schema.Resize):
        parts = [resize]
    elif isinstance(config, schema.PadCrop) and config.cutout_px == 0:
        sides = {*train.heights.tolist(), *train.widths.tolist()}
        if len(sides) > 1:
            raise ValueError(
                f"data.augment: pad_crop is torchvision's RandomCrop for images of one size only; data.train has sides "
                f"from {min(sides)} to {max(sides)} px; use random_resized_crop"
            )
        (side,) = sides
        parts = [v2.RandomCrop(side, padding=config.padding)]
        if side != size_px:
            parts.append(resize)
    else:
        raise ValueError("data.augment: the peers are given random_resized_crop, resize, or pad_crop without cutout")
    return v2.Compose([*parts, v2.RandomHorizontalFlip()] if config.flip else parts)
