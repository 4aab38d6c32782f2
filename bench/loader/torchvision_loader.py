"""torchvision's loader of class folders, which the benches of loaders and of other libraries' schedules share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

#: torchvision's fastest decoder on the CPU: to uint8 tensors.
decode_rgb = partial(decode_image, mode=ImageReadMode.RGB)


def torchvision_loader(
    folder: Path,
    augment: v2.Transform,
    batch_size: int,
    workers: int,
    epoch_images: int | None = None,
    decode: Callable[[str], torch.Tensor] = decode_rgb,
) -> DataLoader:
    """torchvision's ``ImageFolder`` behind PyTorch's ``DataLoader``: uint8 batches, for :func:`normalisation`.

    Args:
        folder: of class folders.
        augment: to the size of the batches.
        batch_size: images in every batch; an incomplete last batch is dropped.
        workers: processes that decode and augment.
        epoch_images: distinct images in an epoch; fewer stored ones are read several times. None: each once.
        decode: an image's file to a uint8 tensor.
    """
    data = ImageFolder(str(folder), transform=augment, loader=decode)
    if epoch_images is not None:
        data.samples = repeated(data.samples, epoch_images)
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """Whole uint8 batches, images and labels, to ``(pixels / 255 - mean) / std``."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std), inplace=True)])


def repeated(items: Sequence, length: int) -> list:
    """The items, repeated in order up to a length."""
    return list(itertools.islice(itertools.cycle(items), length))
