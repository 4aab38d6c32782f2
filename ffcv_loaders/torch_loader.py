"""The same plans from any map-style data set, without a ``.beton`` file.

Decoding and resizing run in the worker processes of a PyTorch ``DataLoader``. Views are cut where the FFCV loader
would cut them, and resized by Pillow; the FFCV loader's pixels are within one level of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.decode.augment import (
    Augment,
    Interpolation,
    PadCrop,
    RandomResizedCrop,
    augment_at,
    check_crops,
    draw_windows,
    resample_of,
)
from mixsize.ffcv_loaders.decode.hugging_face import Split
from mixsize.ffcv_loaders.decode.samples import ImageDataset, as_images, read_sample
from mixsize.ffcv_loaders.engine.native import FLIP, FRAME_HEIGHT, FRAME_WIDTH, HEIGHT, LEFT, TOP, WIDTH
from mixsize.ffcv_loaders.pipeline.planned import PlannedDataset, PlannedLoader
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD, Stager


class TorchMixSizeLoader(PlannedLoader):
    """Training batches whose side, batch size and duplicates follow a regime, from any map-style data set.

    Needs no ``.beton`` file. The plan, the draws, the resume and the algorithms are those of
    :class:`~mixsize.ffcv_loaders.MixSizeLoader`.

    Args:
        data: yields (image, label) without any augmentation, for instance torchvision's ``ImageFolder``; or a split of
            Hugging Face's ``datasets`` with one column of images and one of class labels.
        regime: sizes, batch sizes and duplicates to draw from.
        augment: how views are cut.
        mean: of each channel on the 0..1 scale.
        std: standard deviation of each channel on the same scale.
        interpolation: ``bilinear`` or ``bicubic``.
        seed: all random draws derive from it; at least 0.
        num_workers: processes that decode; 0 decodes in this one.
        device: where batches go; by default CUDA where there is one.
        dtype: of the images.
        channels_last: memory format of the images.
        rank: by default the process group's or the launcher's.
        world_size: as for ``rank``.

    Raises:
        ValueError: a regime that this many images or ranks cannot serve, an augmentation with a policy or a cutout, a
            data set whose first sample is something else than an image and its label, or a split without such columns.

    Example:
        >>> regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(size_px=32, batch_size=2), "D+")
        >>> loader = TorchMixSizeLoader(ImageFolder("train"), regime)
        >>> images, labels = next(iter(loader))
    """

    def __init__(
        self,
        data: ImageDataset | Split,
        regime: Regime | Progression,
        *,
        augment: Augment | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: Interpolation = "bilinear",
        seed: int = 0,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        stager = Stager(mean, std, device, dtype, channels_last)
        augment = RandomResizedCrop() if augment is None else augment
        if isinstance(augment, PadCrop) and augment.changes_pixels:
            raise ValueError(
                f"{augment} has a policy or a cutout, which MixSizeLoader supports and TorchMixSizeLoader does not"
            )
        resample_of(interpolation)
        pairs = as_images(data)
        if len(pairs):
            read_sample(pairs, 0)
        images = (pairs, augment, interpolation, stager, num_workers)
        super().__init__(_MapStyleImages(*images, regime, seed, rank, world_size))


class _MapStyleImages(PlannedDataset):
    def __init__(
        self,
        data: ImageDataset,
        augment: Augment,
        interpolation: Interpolation,
        stager: Stager,
        num_workers: int,
        regime: Regime | Progression,
        seed: int,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self._data = data
        self._augment = augment
        self._interpolation: Interpolation = interpolation
        self._stager = stager
        self._num_workers = num_workers
        super().__init__(regime, seed, len(data), _fingerprint(data), rank, world_size)

    def bind(self, regime: Regime | Progression) -> None:
        check_crops(self._augment, regime)
        super().bind(regime)

    def identity(self) -> dict[str, Any]:
        """Also ``interpolation``, on which the pixels depend."""
        return super().identity() | {"interpolation": self._interpolation}

    def serve(self, plan: EpochPlan, first_step: int) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
        augment = augment_at(self._augment, self.regime, plan.epoch)
        views = _Views(self._data, augment, self._interpolation, self.seed, plan.epoch)
        steps = [plan[index] for index in range(first_step, len(plan))]
        loader = DataLoader(
            views,
            batch_sampler=[[(int(sample), step.duplicates, step.size_px) for sample in step.samples] for step in steps],
            num_workers=self._num_workers,
            collate_fn=_join,
            pin_memory=self._stager.device.type == "cuda",
            generator=torch.Generator(),
        )
        for step, (pixels, labels) in zip(steps, loader, strict=True):
            yield step, *self._stager.stage(pixels, labels).wait()


class _Views(Dataset):
    """A sample's D views at the size asked for: uint8, shape ``(D, S, S, 3)``, and its label."""

    def __init__(
        self, data: ImageDataset, augment: Augment, interpolation: Interpolation, seed: int, epoch: int
    ) -> None:
        self._data = data
        self._augment = augment
        self._interpolation: Interpolation = interpolation
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[np.ndarray, int]:
        sample, duplicates, size_px = item
        image, label = read_sample(self._data, sample)
        height, width, index = np.array([[image.height], [image.width], [sample]])
        windows = draw_windows(self._augment, height, width, index, duplicates, size_px, self._seed, self._epoch)
        return np.stack([cut_with_pillow(image, window, size_px, self._interpolation) for window in windows]), label


def cut_with_pillow(image: Image.Image, window: np.ndarray, size_px: int, interpolation: Interpolation) -> np.ndarray:
    """A view ``(S, S, 3)`` of an RGB image, by a row of :func:`~mixsize.ffcv_loaders.decode.augment.draw_windows`."""
    resample = Image.Resampling[interpolation.upper()]
    if window[FRAME_HEIGHT]:
        image = image.resize((int(window[FRAME_WIDTH]), int(window[FRAME_HEIGHT])), resample)
    top, left, height, width = (int(window[column]) for column in (TOP, LEFT, HEIGHT, WIDTH))
    view = image.crop((left, top, left + width, top + height))  # Black beyond the border.
    if view.size != (size_px, size_px):
        view = view.resize((size_px, size_px), resample)
    return np.asarray(ImageOps.mirror(view) if window[FLIP] else view)


def _join(items: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.concatenate([views for views, _ in items])
    labels = np.repeat(np.array([label for _, label in items], dtype=np.int64), len(items[0][0]))
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _fingerprint(data: ImageDataset) -> str:
    """By the labels, where the data set lists them as torchvision's do; else by its length alone."""
    labels = getattr(data, "targets", None)
    values = np.asarray([len(data)] if labels is None else labels, dtype=np.int64)
    return f"{zlib.crc32(values.tobytes()):08x}"
