"""Our loader as it is timed, and what bounds it: entropy decoding alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.bench.loader.cases import BATCHES_AHEAD, Case, Setting
from mixsize.bench.loader.floor import EntropyDecoder
from mixsize.bench.loader.process import Epoch
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import HEIGHT, WIDTH, PadCrop, RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD
from mixsize.ffcv_loaders.pipeline.stream import LoaderOptions, Source

#: The one case of :func:`floor`.
WHOLE_IMAGES = "whole images"

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


def floor(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Entropy decoding alone, of whole images: one figure, whatever the size; none for raw pixels."""
    beton = Beton.open(setting.data)
    if not beton.is_jpeg.all():
        return {}
    samples = np.arange(setting.epoch_images) % beton.num_samples
    return {WHOLE_IMAGES: partial(_entropy_decode, beton, samples, np.zeros_like(samples), setting.threads)}


def floor_levels(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Entropy decoding alone, of the smallest stored copy that has S px or more where a view of S px is cut."""
    assert setting.levels_file is not None
    beton = Beton.open(setting.levels_file)
    if not beton.levels.is_jpeg.all():
        return {}
    samples = np.arange(setting.epoch_images) % beton.num_samples
    return {
        case.name: partial(
            _entropy_decode, beton, samples, smallest_levels(beton, samples, case.plain.size_px), setting.threads
        )
        for case in cases
        if case.plain is not None
    }


def smallest_levels(beton: Beton, samples: np.ndarray, size_px: int) -> np.ndarray:
    """For a random resized crop of each sample, the last level in which it measures ``size_px`` along both axes.

    The full image, level 0, serves the crops that are smaller than that. Shape ``(B,)``.
    """
    heights, widths = beton.levels.heights[:, samples], beton.levels.widths[:, samples]
    windows = draw_windows(RandomResizedCrop(), heights[0], widths[0], samples, 1, size_px, _SEED, epoch=0)
    rows, columns = windows[:, HEIGHT] * heights / heights[0], windows[:, WIDTH] * widths / widths[0]
    # Levels shrink, so those that suffice come first.
    return np.maximum(((rows >= size_px) & (columns >= size_px)).sum(axis=0) - 1, 0)


def _entropy_decode(beton: Beton, samples: np.ndarray, levels: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    """Yields parts of ``samples`` as they are done."""

    def decode(part: np.ndarray) -> np.ndarray:
        decoder = EntropyDecoder()
        for level, sample in zip(levels[part], samples[part], strict=True):
            decoder.decode(np.frombuffer(beton.stored(sample, level), np.uint8))
        decoder.close()
        return samples[part]

    parts = np.array_split(np.arange(len(samples)), min(len(samples), 16 * threads))
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(decode, parts)
