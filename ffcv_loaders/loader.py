"""The FFCV loaders; Composer and any PyTorch loop use them like ordinary ``DataLoader`` objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from mixsize.algorithms.regime.plan import EpochPlan, Step, plan_evaluation
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import (
    Augment,
    CenterCrop,
    Interpolation,
    RandomResizedCrop,
    augment_at,
    check_crops,
)
from mixsize.ffcv_loaders.decode.decode import EVALUATION_MIN_OVERSAMPLING, MIN_OVERSAMPLING
from mixsize.ffcv_loaders.pipeline.planned import PlannedDataset, PlannedLoader, WholeBatchLoader
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD
from mixsize.ffcv_loaders.pipeline.stream import LoaderOptions, Source
from mixsize.system.ranks import process_rank


class PlannedImages(PlannedDataset):
    """The data set of a :class:`MixSizeLoader`: the images of a ``.beton`` file, batch by batch."""

    def __init__(
        self,
        source: Source,
        regime: Regime | Progression,
        seed: int,
        window_mib: int | None,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self.source = source
        beton = source.beton
        quasi_random = None
        if window_mib is not None:
            quasi_random = QuasiRandom.from_offsets(beton.data_ptr, beton.page_bytes, window_mib)
        super().__init__(regime, seed, beton.num_samples, beton.fingerprint, rank, world_size, quasi_random)

    def bind(self, regime: Regime | Progression) -> None:
        """Also refuses a regime with crop areas for an augmentation without them."""
        check_crops(self.source.augment, regime)
        super().bind(regime)

    def serve(self, plan: EpochPlan, first_step: int) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
        """See :class:`PlannedDataset`; batches are decoded ahead of the one in use."""
        augment = augment_at(self.source.augment, self.regime, plan.epoch)
        return self.source.stream(
            plan, seed=self.seed, augment=augment, first_step=first_step, quasi_random=self.quasi_random
        )

    def identity(self) -> dict[str, Any]:
        """Also ``min_oversampling`` and ``interpolation``, on which the pixels depend."""
        pixels = {"min_oversampling": self.source.min_oversampling, "interpolation": self.source.interpolation}
        return super().identity() | pixels


class EvaluationImages(IterableDataset):
    """The data set of an :class:`EvalLoader`: every image once, at one size."""

    def __init__(self, source: Source, size_px: int, batch_size: int, rank: int | None, world_size: int | None) -> None:
        self.source = source
        default_rank, default_world_size = process_rank()
        self.plan = plan_evaluation(
            source.beton.num_samples,
            size_px,
            batch_size,
            default_rank if rank is None else rank,
            default_world_size if world_size is None else world_size,
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, images, labels in self.source.stream(self.plan, seed=0):
            yield images, labels


class MixSizeLoader(PlannedLoader):
    """Training batches whose side, batch size and duplicates follow a regime, read from a ``.beton`` file.

    Images are decoded straight to the step's size by a prefetching thread. The same (data, regime, seed)
    gives the same batches for any number of threads and ranks and after any resume. Iterating it again
    after a whole epoch serves the next one; :meth:`set_epoch` chooses.

    Args:
        data: a ``.beton`` file or one already open.
        regime: sizes, batch sizes and duplicates to draw from.
        augment: how views are cut; by default :class:`~mixsize.ffcv_loaders.RandomResizedCrop`.
        mean: of each channel on the 0..1 scale; by default ImageNet's. A file's own are ``Beton.open(data).info.mean``
            and ``.std``.
        std: standard deviation of each channel on the same scale.
        seed: all random draws derive from it; at least 0.
        num_workers: decoding threads, at least 1; by default the machine's cores divided among its ranks.
        batches_ahead: batches decoded ahead, at least 1; memory is ``batches_ahead + 1`` times the regime's costliest
            batch.
        min_oversampling: a view is read from a smaller copy of its image, stored or made while decoding, where its
            window measures this many times the view's side or more in it, along both axes. With ``math.inf`` every view
            is read from the full image and has, to within one level, the pixels that Pillow gives.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased, as Pillow's.
        window_mib: None for a fully random order. A number gives a quasi-random order, which reads the file page by
            page: pages are shuffled, and samples within windows of this many MiB. For storage with slow random access;
            two windows should fit into memory, and samples of a class should not lie together.
        device: where batches go; by default CUDA where there is one.
        dtype: of the images.
        channels_last: memory format of the images.
        rank: by default the process group's or the launcher's.
        world_size: as for ``rank``.

    Raises:
        BetonError: a file that cannot be read.
        ValueError: a regime that this many images or ranks cannot serve.

    Example:
        >>> regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(size_px=32, batch_size=2), "D+")
        >>> loader = MixSizeLoader("train.beton", regime, seed=1)
        >>> for images, labels in loader:  # (B * D, 3, S, S), (B * D,)
        ...     assert len(images) == len(labels)
    """

    dataset: PlannedImages

    def __init__(
        self,
        data: str | Path | Beton,
        regime: Regime | Progression,
        *,
        augment: Augment | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        num_workers: int | None = None,
        batches_ahead: int = 2,
        min_oversampling: float = MIN_OVERSAMPLING,
        interpolation: Interpolation = "bilinear",
        window_mib: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        reading = (mean, std, num_workers, batches_ahead, min_oversampling, interpolation)
        options = LoaderOptions(*reading, device, dtype, channels_last)
        source = Source(data, RandomResizedCrop() if augment is None else augment, options)
        super().__init__(PlannedImages(source, regime, seed, window_mib, rank, world_size))


class EvalLoader(WholeBatchLoader):
    """Evaluation batches at one size: every image of a ``.beton`` file once, over all ranks.

    Args:
        data: a ``.beton`` file or one already open.
        size_px: image side S in pixels.
        batch_size: images in a batch on one rank, at most. Every rank has the same number of batches and none is empty:
            with 1, where ranks cannot share the images evenly, some have one batch of 2.
        augment: how the view is cut; by default the paper's for ImageNet, :class:`CenterCrop`.
        mean, std, num_workers, batches_ahead, min_oversampling, interpolation, device, dtype, channels_last, rank,
            world_size: see :class:`MixSizeLoader`.

    Raises:
        BetonError: a file that cannot be read.
        ValueError: a size or batch below 1, or more ranks than images.

    Example:
        >>> loader = EvalLoader("val.beton", size_px=32, batch_size=4, augment=Resize())
        >>> images, labels = next(iter(loader))
        >>> tuple(images.shape)
        (4, 3, 32, 32)
    """

    dataset: EvaluationImages

    def __init__(
        self,
        data: str | Path | Beton,
        size_px: int,
        batch_size: int,
        *,
        augment: Augment | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        num_workers: int | None = None,
        batches_ahead: int = 2,
        min_oversampling: float = EVALUATION_MIN_OVERSAMPLING,
        interpolation: Interpolation = "bilinear",
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        reading = (mean, std, num_workers, batches_ahead, min_oversampling, interpolation)
        options = LoaderOptions(*reading, device, dtype, channels_last)
        source = Source(data, CenterCrop() if augment is None else augment, options)
        super().__init__(EvaluationImages(source, size_px, batch_size, rank, world_size))

    def __len__(self) -> int:
        return len(self.dataset.plan)

    def _max_images(self) -> int:
        return int(np.max(self.dataset.plan.batch_size))
