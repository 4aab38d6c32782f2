"""A file of photographs as epochs of any length: a small one is read several times over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from mixsize.algorithms.regime.plan import EpochPlan, plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.bench.gpu.record import DataFacts
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import CenterCrop, RandomResizedCrop
from mixsize.ffcv_loaders.decode.decode import EVALUATION_MIN_OVERSAMPLING, MIN_OVERSAMPLING
from mixsize.ffcv_loaders.pipeline.stream import LoaderOptions, Source

_SEED = 0
_WARM_UP_IMAGES = 64


class Photographs:
    """Batches as :class:`~mixsize.ffcv_loaders.MixSizeLoader` serves them, but for epochs longer than the file.

    Args:
        beton: the file, which must stay open while batches are served.
        device: where batches go, in channels-last memory.
        threads: that decode.
        evaluation: cut views as evaluation does, not as training.
    """

    def __init__(self, beton: Beton, device: torch.device, threads: int, *, evaluation: bool = False) -> None:
        self._augment = CenterCrop() if evaluation else RandomResizedCrop()
        options = LoaderOptions(
            num_workers=threads,
            min_oversampling=EVALUATION_MIN_OVERSAMPLING if evaluation else MIN_OVERSAMPLING,
            device=device,
            channels_last=True,
        )
        self._source = Source(beton, self._augment, options)

    def plan(self, regime: Regime, images: int, epoch: int) -> EpochPlan:
        """An epoch of so many images, of which there may be fewer."""
        plan = plan_epoch(regime, images, _SEED, epoch)
        return replace(plan, samples=plan.samples % self._source.beton.num_samples)

    def serve(self, plan: EpochPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of a plan, on the device."""
        for _, images, labels in self._source.stream(plan, seed=_SEED):
            yield images, labels

    def warm_up(self) -> None:
        """Serve a few images: the first that a process decodes wait for the decoder's compilation, for seconds."""
        images = min(_WARM_UP_IMAGES, self._source.beton.num_samples)
        for _ in self.serve(self.plan(Regime.fixed(Base(32, images)), images, epoch=0)):
            pass


def describe(file: Path, beton: Beton) -> DataFacts:
    """What a record says of the images."""
    return DataFacts(
        file=file.name,
        images=beton.num_samples,
        mean_height=float(beton.heights.mean()),
        mean_width=float(beton.widths.mean()),
        levels=beton.num_levels,
    )
