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
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD, Stager
from mixsize.ffcv_loaders.pipeline.stream import stream_batches

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
    stager = Stager(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    augment = PadCrop() if setting.pad_crop else RandomResizedCrop()
    epochs = itertools.count()

    def epoch(case: Case) -> Iterator[torch.Tensor]:
        plan = plan_epoch(case.regime, setting.epoch_images, _SEED, next(epochs))
        plan = replace(plan, samples=plan.samples % beton.num_samples)
        batches = stream_batches(
            beton, plan, augment, stager, seed=_SEED, threads=setting.threads, prefetch=BATCHES_AHEAD
        )
        for _, images, _ in batches:
            yield images

    return {case.name: partial(epoch, case) for case in cases}
