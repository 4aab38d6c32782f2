"""The same plans from any map-style data set, without a ``.beton`` file.

Decoding and resizing run in the worker processes of a PyTorch ``DataLoader``. Views are cut where the FFCV loader
would cut them, and resized by Pillow; the FFCV loader's pixels are within one level of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
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
from mixsize.ffcv_loaders.decode.policy import check_one_size, make_policy
from mixsize.ffcv_loaders.decode.samples import ImageDataset, as_images, read_sample
from mixsize.ffcv_loaders.decode.views import open_changes
from mixsize.ffcv_loaders.engine.native import (
    FLIP,
    FRAME_HEIGHT,
    FRAME_WIDTH,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Policy,
    apply_policy,
    change_view,
)
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
        ValueError: a regime that this many images or ranks cannot serve, a data set whose first sample is something
            else than an image and its label, or a split without such columns.

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
        views = _Views(self._data, augment, self._interpolation, self._stager.mean, self.seed, plan.epoch)
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
        self,
        data: ImageDataset,
        augment: Augment,
        interpolation: Interpolation,
        mean: Sequence[float],
        seed: int,
        epoch: int,
    ) -> None:
        self._data = data
        self._augment = augment
        self._interpolation: Interpolation = interpolation
        self._mean, self._seed, self._epoch = mean, seed, epoch
        self._changes = open_changes(augment, mean, seed, epoch)

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[np.ndarray, int]:
        sample, duplicates, size_px = item
        image, label = read_sample(self._data, sample)
        height, width, index = np.array([[image.height], [image.width], [sample]])
        windows = draw_windows(self._augment, height, width, index, duplicates, size_px, self._seed, self._epoch)
        if self._policy is not None:
            self._check_size(image, sample)
        views = np.stack([self._cut(image, window, size_px, sample, d) for d, window in enumerate(windows)])
        if self._changes is not None:
            for duplicate, view in enumerate(views):
                change_view(view, self._changes.at(size_px), sample, duplicate)
        return views, label

    def _cut(self, image: Image.Image, window: np.ndarray, size_px: int, sample: int, duplicate: int) -> np.ndarray:
        if self._policy is not None:
            view = np.array(_crop(image, window, mirror=bool(window[FLIP])))
            apply_policy(view, self._policy, sample, duplicate)
            image, window = Image.fromarray(view), np.array([0, 0, *view.shape[:2], 0, 0, 0])
        return cut_with_pillow(image, window, size_px, self._interpolation)

    # Made where it is used: what holds addresses cannot be sent to a worker.
    @cached_property
    def _policy(self) -> Policy | None:
        if not (isinstance(self._augment, PadCrop) and self._augment.changes_pixels):
            return None
        return make_policy(self._augment, *self._first_size, self._mean, self._seed, self._epoch)

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        image, _ = read_sample(self._data, 0)
        return image.height, image.width

    def _check_size(self, image: Image.Image, sample: int) -> None:
        assert isinstance(self._augment, PadCrop)
        sizes = np.array([self._first_size, (image.height, image.width)])
        check_one_size(self._augment, f"sample {sample}", sizes[:, 0], sizes[:, 1])


def cut_with_pillow(image: Image.Image, window: np.ndarray, size_px: int, interpolation: Interpolation) -> np.ndarray:
    """A view ``(S, S, 3)`` of an RGB image, by a row of :func:`~mixsize.ffcv_loaders.decode.augment.draw_windows`."""
    resample = Image.Resampling[interpolation.upper()]
    if window[FRAME_HEIGHT]:
        image = image.resize((int(window[FRAME_WIDTH]), int(window[FRAME_HEIGHT])), resample)
    view = _crop(image, window)
    if view.size != (size_px, size_px):
        view = view.resize((size_px, size_px), resample)
    return np.asarray(ImageOps.mirror(view) if window[FLIP] else view)


def _crop(image: Image.Image, window: np.ndarray, mirror: bool = False) -> Image.Image:
    """A window's pixels, black beyond the border."""
    top, left, height, width = (int(window[column]) for column in (TOP, LEFT, HEIGHT, WIDTH))
    view = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(view) if mirror else view


def _join(items: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.concatenate([views for views, _ in items])
    labels = np.repeat(np.array([label for _, label in items], dtype=np.int64), len(items[0][0]))
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _fingerprint(data: ImageDataset) -> str:
    """By the labels, where the data set lists them as torchvision's do; else by its length alone."""
    labels = getattr(data, "targets", None)
    values = np.asarray([len(data)] if labels is None else labels, dtype=np.int64)
    return f"{zlib.crc32(values.tobytes()):08x}"
