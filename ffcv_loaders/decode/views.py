"""What changes a view after its resize: a policy, colour jitter, random erasing.

They work on the view at the step's side, as in torchvision's and timm's presets, in this order. The operations are
Pillow's, bit for bit. Moved images are read at the nearest pixel, as torchvision's policies do; timm draws between
bilinear and bicubic. Pixels from outside and erased ones have the mean colour, as in timm. Every draw is a hash of
(seed, epoch, sample, duplicate), see ``augment``: a view has the same draws at every side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixsize.ffcv_loaders.decode.augment import Augment, CenterCrop, Magnitude, jitter_of, magnitude_at, view_policy_of
from mixsize.ffcv_loaders.decode.policy import mean_colour
from mixsize.ffcv_loaders.decode.view_policies import (
    MAGNITUDE_MAX,
    WEIGHTS,
    AutoAugment,
    RandAugment,
    TrivialAugment,
    ViewPolicy,
)
from mixsize.ffcv_loaders.engine import native

#: A row of a policy's table, as views.c numbers its columns.
Row = tuple[float, ...]


@dataclass(frozen=True)
class _Law:
    """What an operation takes of a magnitude m: ``base + scale m / 10``, within bounds.

    ``whole`` drops the fraction of the second term; ``signed`` takes its negative as often.
    """

    kind: int
    base: float = 0.0
    scale: float = 0.0
    signed: bool = False
    whole: bool = False
    least: float = -math.inf
    most: float = math.inf

    def row(self, probability: float, magnitude: float, factor: float = 1.0) -> Row:
        kind, base, scale = float(self.kind), self.base, self.scale * factor
        return kind, probability, magnitude, base, scale, float(self.signed), float(self.whole), self.least, self.most


_ENHANCED = {
    "Color": native.COLOUR,
    "Contrast": native.CONTRAST,
    "Brightness": native.BRIGHTNESS,
    "Sharpness": native.SHARPNESS,
}
#: timm's name of an operation -> its law.
_LAWS = {
    "AutoContrast": _Law(native.AUTO_CONTRAST),
    "Equalize": _Law(native.EQUALIZE),
    "Invert": _Law(native.INVERT),
    "Rotate": _Law(native.ROTATE, scale=30, signed=True),
    "ShearX": _Law(native.SHEAR_X, scale=0.3, signed=True),
    "ShearY": _Law(native.SHEAR_Y, scale=0.3, signed=True),
    "TranslateXRel": _Law(native.TRANSLATE_X, scale=0.45, signed=True),
    "TranslateYRel": _Law(native.TRANSLATE_Y, scale=0.45, signed=True),
    "Posterize": _Law(native.POSTERIZE, scale=4, whole=True, most=8),
    "PosterizeIncreasing": _Law(native.POSTERIZE, base=4, scale=-4, whole=True, least=0),
    "PosterizeOriginal": _Law(native.POSTERIZE, base=4, scale=4, whole=True, most=8),
    "Solarize": _Law(native.SOLARIZE, scale=256, whole=True, most=256),
    "SolarizeIncreasing": _Law(native.SOLARIZE, base=256, scale=-256, whole=True, least=0),
    "SolarizeAdd": _Law(native.SOLARIZE_ADD, scale=110, whole=True, most=128),
    **{name: _Law(kind, base=0.1, scale=1.8) for name, kind in _ENHANCED.items()},
    **{f"{name}Increasing": _Law(kind, 1.0, 0.9, signed=True, least=0.1) for name, kind in _ENHANCED.items()},
}
#: Operations whose argument is a part of the side.
_OF_SIDE = ("TranslateXRel", "TranslateYRel")
#: TrivialAugment's magnitudes lie evenly between 0 and the greatest.
_TRIVIAL_MAGNITUDES = 31


class ViewChanges:
    """What changes the views of one epoch after their resize.

    Args:
        policy: None for none.
        magnitude: in place of RandAugment's own; see :class:`~mixsize.ffcv_loaders.RandomResizedCrop`.
        jitter: greatest changes of brightness, contrast, saturation and hue.
        erasing: probability.
        fill: the mean colour, uint8, shape ``(3,)``.
        seed: the run's seed.
        epoch: from 0.
    """

    def __init__(
        self,
        policy: ViewPolicy | None,
        magnitude: Magnitude | None,
        jitter: Sequence[float],
        erasing: float,
        fill: np.ndarray,
        seed: int,
        epoch: int,
    ) -> None:
        self._policy, self._magnitude = policy, magnitude
        self._rest = (jitter, erasing, fill, seed, epoch)
        self._made: dict[int, native.ViewChanges] = {}

    def at(self, size_px: int) -> native.ViewChanges:
        """As the engine takes them for views of one side."""
        if size_px not in self._made:
            self._made[size_px] = native.ViewChanges(*self._policy_at(size_px), *self._rest)
        return self._made[size_px]

    def _policy_at(self, size_px: int) -> tuple[np.ndarray | None, np.ndarray | None, int, float, float]:
        """The first arguments of :class:`native.ViewChanges`."""
        policy = self._policy
        if policy is None:
            return None, None, 0, 0.0, MAGNITUDE_MAX
        table = np.array(list(_choices(policy, self._magnitude, size_px)), np.float64)
        if isinstance(policy, RandAugment):
            weights = np.array(list(WEIGHTS.values())) if policy.weighted else None
            return table, weights, policy.num_layers, policy.magnitude_std, policy.magnitude_max
        return table, None, 1, policy.magnitude_std if isinstance(policy, AutoAugment) else 0.0, MAGNITUDE_MAX


def open_changes(augment: Augment, mean: Sequence[float], seed: int, epoch: int) -> ViewChanges | None:
    """What changes views after their resize, or None where they stay as they are.

    Args:
        augment: names the changes.
        mean: of each channel on the 0..1 scale; rounded to 8 bits it fills what is erased or comes from outside.
        seed: the run's seed.
        epoch: from 0.
    """
    if isinstance(augment, CenterCrop):
        return None
    policy, jitter = view_policy_of(augment), jitter_of(augment.color_jitter)
    if policy is None and not any(jitter) and augment.erasing == 0:
        return None
    return ViewChanges(policy, augment.magnitude, jitter, augment.erasing, mean_colour(mean), seed, epoch)


def _choices(policy: ViewPolicy, magnitude: Magnitude | None, size_px: int) -> Iterator[list[Row]]:
    """What is drawn from: the operations of each choice."""
    if isinstance(policy, TrivialAugment):
        # A magnitude of 10 makes the second term of a law the scale itself.
        yield from ([law.row(1.0, MAGNITUDE_MAX)] for law in _trivial_laws())
    elif isinstance(policy, AutoAugment):
        yield from ([_row(*operation, size_px) for operation in pair] for pair in policy.pairs())
    else:
        used = policy.magnitude if magnitude is None else magnitude_at(magnitude, size_px)
        yield from ([_row(name, policy.probability, used, size_px)] for name in policy.operations())


def _row(name: str, probability: float, magnitude: float, size_px: int) -> Row:
    return _LAWS[name].row(probability, magnitude, size_px if name in _OF_SIDE else 1.0)


def _trivial_laws() -> Iterator[_Law]:
    """Each operation at each of its magnitudes."""
    for step in range(_TRIVIAL_MAGNITUDES):
        yield from (_Law(kind) for kind in (native.IDENTITY, native.AUTO_CONTRAST, native.EQUALIZE))
        part = step / (_TRIVIAL_MAGNITUDES - 1)
        share = float(np.float32(0.99 * part))  # In single precision, as torchvision's.
        yield from (_Law(kind, scale=share, signed=True) for kind in (native.SHEAR_X, native.SHEAR_Y))
        yield from (_Law(kind, base=1.0, scale=share, signed=True) for kind in _ENHANCED.values())
        for kind in (native.TRANSLATE_X, native.TRANSLATE_Y):
            yield _Law(kind, scale=32 * part, whole=True, signed=True)
        yield _Law(native.ROTATE, scale=135 * part, signed=True)
        yield _Law(native.POSTERIZE, base=8 - round(6 * part))
        yield _Law(native.SOLARIZE, base=float(np.float32(255 * (1 - part))))
