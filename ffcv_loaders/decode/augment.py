"""Where each view of an image is cut from, whether it is mirrored, and the names of what else changes it.

A view is a window ``(top, left, height, width)`` of the stored frame, resized to the step's side and
perhaps mirrored. Where a frame size is given as well, the frame is resized to it first, and the window
counts in its pixels. A window may reach over the border; beyond the border is black.

Every draw is a hash of (seed, epoch, sample, duplicate), so it does not depend on threads, ranks, batches or earlier
draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixsize.algorithms.regime.checks import MAX_SIZE_PX, check_count, is_number
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.decode.view_policies import RandAugment, ViewPolicy, parse_policy
from mixsize.ffcv_loaders.engine import native

# As windows.c numbers them.
_RANDOM_RESIZED, _PADDED, _CENTRAL = range(3)

#: Filters that views are resized with, both antialiased, as Pillow's.
Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLE: dict[Interpolation, int] = {"bilinear": native.BILINEAR, "bicubic": native.BICUBIC}

#: A magnitude of RandAugment, or one for some sides in pixels.
Magnitude = float | Mapping[int, float]
#: Greatest changes of brightness, contrast and saturation: one for all three, or each, perhaps with that of hue.
ColorJitter = float | tuple[float, ...]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the frame, stretched to the target (Szegedy et al. 2015), as torchvision's.

    The last four arguments change the view at its target side, in their order, on the CPU;
    :mod:`mixsize.ffcv_loaders.decode.views` does them.

    Args:
        scale: least and greatest area, as fractions of the frame's area.
        ratio: least and greatest width / height.
        flip: mirror half of the views left to right.
        policy: RandAugment by timm's option string, such as ``rand-m9-mstd0.5-inc1``; AutoAugment's for ImageNet,
            ``original`` or ``v0``; torchvision's TrivialAugmentWide, ``trivial``; or ``none``.
        magnitude: of RandAugment, in place of the string's ``m``. A mapping gives it for some target sides in pixels;
            between them it is interpolated linearly, beyond them it is that of the nearest.
        color_jitter: greatest changes x of brightness, contrast and saturation, whose factors are drawn from
            [max(0, 1 - x), 1 + x] and applied in random order: one x for all three, or one each; a fourth, at most 0.5,
            turns hues.
        erasing: probability that a rectangle of 1/50 to 1/3 of the view gets the mean colour, as timm's
            ``RandomErasing`` with mode const.

    Example:
        >>> crop = RandomResizedCrop(scale=(0.25, 1.0), policy="rand-m9-mstd0.5-inc1", magnitude={128: 5, 224: 9})
        >>> crop.magnitude[224]
        9
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    policy: str = "none"
    magnitude: Magnitude | None = None
    color_jitter: ColorJitter | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, math.inf)
        _check_changes(self)

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _RANDOM_RESIZED, (*self.scale, math.log(self.ratio[0]), math.log(self.ratio[1])), self.flip


@dataclass(frozen=True)
class PadCrop:
    """The frame shifted at random, black beyond its border, then resized (He et al. 2016 for CIFAR).

    The policy ``cifar10`` and a cutout, with which the MixSize paper trains WRN-28-10, change the view between its crop
    and its resize; :mod:`mixsize.ffcv_loaders.decode.policy` does them. They need images of one stored size. Other
    policies work at the target side.

    Args:
        padding: greatest shift, in pixels of the stored image.
        flip: mirror half of the views left to right.
        policy: ``cifar10``, AutoAugment's (Cubuk et al. 2019); or one of :class:`RandomResizedCrop`.
        cutout_px: side of the square about a random pixel that is filled with the mean colour (DeVries and Taylor
            2017), in pixels of the stored image; 0 for none.
        magnitude, color_jitter, erasing: see :class:`RandomResizedCrop`.

    Example:
        >>> PadCrop(policy="cifar10", cutout_px=16).changes_pixels
        True
    """

    padding: int = 4
    flip: bool = True
    policy: str = "none"
    cutout_px: int = 0
    magnitude: Magnitude | None = None
    color_jitter: ColorJitter | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}; it must be at least 0 px")
        if self.cutout_px < 0:
            raise ValueError(f"cutout_px is {self.cutout_px}; it must be at least 0 px")
        _check_changes(self)

    @property
    def changes_pixels(self) -> bool:
        """Whether views are changed before their resize, so that they are cut at the stored size first."""
        return self.policy == "cifar10" or self.cutout_px > 0

    def _draw(self) -> tuple[int, tuple[float, ...], bool]:
        return _PADDED, (self.padding,), self.flip


@dataclass(frozen=True)
class Resize:
    """The whole frame, stretched to the target: the paper's evaluation on CIFAR.

    Args:
        flip: mirror half of the views left to right.
        policy, magnitude, color_jitter, erasing: see :class:`RandomResizedCrop`.

    Example:
        >>> Resize().flip
        False
    """

    flip: bool = False
    policy: str = "none"
    magnitude: Magnitude | None = None
    color_jitter: ColorJitter | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        _check_changes(self)

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


TrainingAugment = RandomResizedCrop | PadCrop | Resize
Augment = TrainingAugment | CenterCrop


def resample_of(interpolation: Interpolation) -> int:
    """The engine's number of a filter.

    Raises:
        ValueError: an unknown filter.
    """
    if interpolation not in _RESAMPLE:
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {', '.join(_RESAMPLE)}")
    return _RESAMPLE[interpolation]


def augment_at(augment: Augment, regime: Regime | Progression, epoch: int) -> Augment:
    """How views are cut and changed in an epoch.

    A phase may set the areas of random resized crops, and the magnitude of RandAugment.

    Raises:
        ValueError: the regime sets one of them and ``augment`` is of another kind.
    """
    scale, magnitude = regime.crop_scale_at(epoch), regime.strength_at("magnitude", epoch)
    if scale is not None:
        if not isinstance(augment, RandomResizedCrop):
            raise ValueError(f"a phase sets crop_scale {scale}, which applies to RandomResizedCrop, not to {augment}")
        augment = replace(augment, scale=scale)
    if magnitude is not None:
        if isinstance(augment, CenterCrop) or not isinstance(view_policy_of(augment), RandAugment):
            raise ValueError(
                f"a phase sets magnitude {magnitude:g}, which applies to a policy rand-..., not to {augment}"
            )
        augment = replace(augment, magnitude=magnitude)
    return augment


def view_policy_of(augment: TrainingAugment) -> ViewPolicy | None:
    """The policy that changes views at their target side, without the magnitude that takes the place of its own."""
    at_stored_size = isinstance(augment, PadCrop) and augment.policy == "cifar10"
    return None if at_stored_size else parse_policy(augment.policy)


def magnitude_at(magnitude: Magnitude, size_px: int) -> float:
    """The magnitude at a side."""
    if not isinstance(magnitude, Mapping):
        return float(magnitude)
    sizes = sorted(magnitude)
    return float(np.interp(size_px, sizes, [magnitude[size] for size in sizes]))


def jitter_of(color_jitter: ColorJitter | None) -> tuple[float, float, float, float]:
    """Greatest changes of brightness, contrast, saturation and hue; 0 where there is none."""
    parts = color_jitter or 0.0
    brightness, contrast, saturation, *hue = parts if isinstance(parts, (tuple, list)) else (parts,) * 3
    return brightness, contrast, saturation, hue[0] if hue else 0.0


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


def _check_changes(augment: TrainingAugment) -> None:
    policy = view_policy_of(augment)
    if augment.magnitude is not None:
        _check_magnitude(augment.magnitude, augment.policy, policy)
    if augment.color_jitter is not None:
        _check_jitter(augment.color_jitter)
    if not is_number(augment.erasing) or not 0 <= augment.erasing <= 1:
        raise ValueError(f"erasing is {augment.erasing!r}; it must be a probability in [0, 1]")


def _check_magnitude(magnitude: Magnitude, name: str, policy: ViewPolicy | None) -> None:
    if not isinstance(policy, RandAugment):
        raise ValueError(f"magnitude is {magnitude!r}, which applies to a policy rand-..., not to {name}")
    if isinstance(magnitude, Mapping):
        if not magnitude:
            raise ValueError("magnitude is {}; it must give a magnitude for at least one side")
        for size in magnitude:
            check_count("a side of magnitude", size, MAX_SIZE_PX)
    for value in magnitude.values() if isinstance(magnitude, Mapping) else (magnitude,):
        if not is_number(value) or not 0 <= value <= policy.magnitude_max:
            raise ValueError(
                f"magnitude is {value!r}; with policy {name} it must be in [0, {policy.magnitude_max:g}], which -mmax20"
                " would raise to 20"
            )


def _check_jitter(jitter: ColorJitter) -> None:
    parts = jitter if isinstance(jitter, (tuple, list)) else (jitter,) * 3
    within = all(is_number(part) and 0 <= part < math.inf for part in parts)
    if len(parts) not in (3, 4) or not within or (len(parts) == 4 and parts[3] > 0.5):
        raise ValueError(
            f"color_jitter is {jitter!r}; it must be a number of at least 0, three for brightness, contrast and "
            "saturation, or four, the last for hue in [0, 0.5]"
        )
