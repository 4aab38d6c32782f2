"""Where each view of an image is cut from, and whether it is mirrored.

A view is a window ``(top, left, height, width)`` of the stored frame, resized to the step's side and
perhaps mirrored. Where a frame size is given as well, the frame is resized to it first, and the window
counts in its pixels. A window may reach over the border; beyond the border is black.

Every draw is a hash of (seed, epoch, sample, duplicate), so it does not depend on threads, ranks, batches or earlier
draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.engine import native

# As windows.c numbers them.
_RANDOM_RESIZED, _PADDED, _CENTRAL = range(3)

#: Filters that views are resized with, both antialiased, as Pillow's.
Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLE: dict[Interpolation, int] = {"bilinear": native.BILINEAR, "bicubic": native.BICUBIC}

#: Policies that change a view beyond its crop; see :mod:`mixsize.ffcv_loaders.decode.policy`.
Policy = Literal["none", "cifar10"]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the frame, stretched to the target (Szegedy et al. 2015), as torchvision's.

    Args:
        scale: least and greatest area, as fractions of the frame's area.
        ratio: least and greatest width / height.
        flip: mirror half of the views left to right.

    Example:
        >>> RandomResizedCrop(scale=(0.25, 1.0))
        RandomResizedCrop(scale=(0.25, 1.0), ratio=(0.75, 1.3333333333333333), flip=True)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, math.inf)

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _RANDOM_RESIZED, (*self.scale, math.log(self.ratio[0]), math.log(self.ratio[1])), self.flip


@dataclass(frozen=True)
class PadCrop:
    """The frame shifted at random, black beyond its border, then resized (He et al. 2016 for CIFAR).

    A policy and a cutout, with which the MixSize paper trains WRN-28-10, change the view between its crop and its
    resize; :mod:`mixsize.ffcv_loaders.decode.policy` does them. They need images of one stored size, and the FFCV
    loader.

    Args:
        padding: greatest shift, in pixels of the stored image.
        flip: mirror half of the views left to right.
        policy: ``cifar10`` is AutoAugment's (Cubuk et al. 2019).
        cutout_px: side of the square about a random pixel that is filled with the mean colour (DeVries and Taylor
            2017), in pixels of the stored image; 0 for none.

    Example:
        >>> PadCrop(policy="cifar10", cutout_px=16).changes_pixels
        True
    """

    padding: int = 4
    flip: bool = True
    policy: Policy = "none"
    cutout_px: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}; it must be at least 0 px")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy is {self.policy!r}; it must be one of {', '.join(get_args(Policy))}")
        if self.cutout_px < 0:
            raise ValueError(f"cutout_px is {self.cutout_px}; it must be at least 0 px")

    @property
    def changes_pixels(self) -> bool:
        """Whether views are changed beyond their crop, so that they are cut at the stored size first."""
        return self.policy != "none" or self.cutout_px > 0

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _PADDED, (self.padding,), self.flip


@dataclass(frozen=True)
class Resize:
    """The whole frame, stretched to the target: the paper's evaluation on CIFAR.

    Args:
        flip: mirror half of the views left to right.

    Example:
        >>> Resize()
        Resize(flip=False)
    """

    flip: bool = False

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _PADDED, (0,), self.flip


@dataclass(frozen=True)
class CenterCrop:
    """The paper's evaluation on ImageNet: shorter side to ``ceil(S / fraction)``, then the central S x S.

    Sides are rounded as torchvision's ``Resize`` and ``CenterCrop`` round them.

    Args:
        fraction: S over the shorter side after resizing; the paper's is 7/8.

    Example:
        >>> CenterCrop(fraction=1.0)
        CenterCrop(fraction=1.0)
    """

    fraction: float = 7 / 8

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; it must lie in (0, 1]")

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _CENTRAL, (self.fraction,), False


Augment = RandomResizedCrop | PadCrop | Resize | CenterCrop


def resample_of(interpolation: Interpolation) -> int:
    """The engine's number of a filter.

    Raises:
        ValueError: an unknown filter.
    """
    if interpolation not in _RESAMPLE:
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {', '.join(_RESAMPLE)}")
    return _RESAMPLE[interpolation]


def augment_at(augment: Augment, regime: Regime | Progression, epoch: int) -> Augment:
    """How views are cut in an epoch: a phase may set the areas of random resized crops.

    Raises:
        ValueError: the regime sets them and ``augment`` is of another kind.
    """
    scale = regime.crop_scale_at(epoch)
    if scale is None:
        return augment
    if not isinstance(augment, RandomResizedCrop):
        raise ValueError(f"a phase sets crop_scale {scale}, which applies to RandomResizedCrop, not to {augment}")
    return replace(augment, scale=scale)


def check_crops(augment: Augment, regime: Regime | Progression) -> None:
    """Refuse a regime whose phases set crops that ``augment`` does not cut; see :func:`augment_at`."""
    for start in getattr(regime, "starts", (0,)):
        augment_at(augment, regime, start)


def draw_windows(
    augment: Augment,
    heights: np.ndarray,
    widths: np.ndarray,
    samples: np.ndarray,
    duplicates: int,
    size_px: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Cut the views of one batch.

    Args:
        augment: how views are cut.
        heights: heights of the batch's images in pixels, shape ``(B,)``.
        widths: their widths, shape ``(B,)``.
        samples: their indices in the data set, shape ``(B,)``.
        duplicates: views D of each image.
        size_px: image side S in pixels.
        seed: the run's seed.
        epoch: from 0.

    Returns:
        Windows, int64, shape ``(B * D, 7)``: top, left, height, width; 1 where the view is mirrored; height and width
        to resize the frame to before cutting, or 0 where it is cut as stored. A sample's views lie side by side.
    """
    return native.draw_windows(*augment._draw(), heights, widths, samples, duplicates, size_px, seed, epoch)


def _check_range(name: str, bounds: tuple[float, float], most: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
        limit = f"at most {most:g}" if most < math.inf else "finite"
        raise ValueError(f"{name} is {tuple(bounds)}; it must be two rising numbers above 0, {limit}")
