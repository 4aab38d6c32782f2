"""Our loader as it is timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.bench.loader.cases import BATCHES_AHEAD, Case, Setting
from mixsize.bench.loader.process import Epoch
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import PadCrop, RandomResizedCrop
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD
from mixsize.ffcv_loaders.pipeline.stream import LoaderOptions, Source

_SEED = 0


def ours(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Our loader on the file with one stored resolution."""
    return _ours(setting.data, setting, cases)


def ours_levels(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Our loader on the file with several stored resolutions."""
    assert setting.levels_file is not None
    return _ours(setting.levels_file, setting, cases)


def _ours(file: Path, setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    beton = Beton.open(file)
    augment = PadCrop() if setting.pad_crop else RandomResizedCrop()
    options = LoaderOptions(IMAGENET_MEAN, IMAGENET_STD, setting.threads, BATCHES_AHEAD, device="cpu")
    source = Source(beton, augment, options)
    epochs = itertools.count()

    def epoch(case: Case) -> Iterator[torch.Tensor]:
        plan = plan_epoch(case.regime, setting.epoch_images, _SEED, next(epochs))
        plan = replace(plan, samples=plan.samples % beton.num_samples)
        for _, images, _ in source.stream(plan, seed=_SEED):
            yield images

    return {case.name: partial(epoch, case) for case in cases}
