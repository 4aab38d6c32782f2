"""FFCV's loader, which the benches of loaders and of the time to start share. Imports nothing of mixsize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage


def ffcv_loader(
    data: Path,
    size_px: int,
    batch_size: int,
    threads: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    indices: Sequence[int] | None = None,
    batches_ahead: int = 2,
    pad_crop: bool = False,
) -> Loader:
    """FFCV's loader in its documented CPU pipeline: normalised float32 batches and their labels.

    Args:
        data: the ``.beton`` file.
        size_px: side of the views; with ``pad_crop`` it must be that of the stored images.
        batch_size: images in every batch; an incomplete last batch is dropped.
        threads: that decode.
        mean: of each channel on the 0..1 scale.
        std: standard deviation of each channel on the same scale.
        indices: samples of an epoch; None for all.
        batches_ahead: that are prepared ahead.
        pad_crop: cut views by pad-and-crop instead of random resized crops.
    """
    if pad_crop:
        head = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4, fill=(0, 0, 0))]
    else:
        head = [RandomResizedCropRGBImageDecoder((size_px, size_px)), RandomHorizontalFlip()]
    normalise = NormalizeImage(255 * np.array(mean), 255 * np.array(std), np.dtype(np.float32))
    return Loader(
        str(data),
        batch_size=batch_size,
        num_workers=threads,
        order=OrderOption.RANDOM,
        indices=indices,  # pyright: ignore[reportArgumentType]
        drop_last=True,
        batches_ahead=batches_ahead,
        os_cache=True,
        pipelines={"image": [*head, normalise, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
    )
