"""Augmentation policies of views at their side: RandAugment and AutoAugment by timm's option strings, TrivialAugment.

The operations, their ranges and the strings are those of ``timm.data.auto_augment``; TrivialAugment's are those of
``torchvision.transforms.TrivialAugmentWide``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

#: An operation by timm's name, with its probability and its magnitude of 10.
Operation = tuple[str, float, float]
#: The greatest magnitude, where ``mmax`` names no other.
MAGNITUDE_MAX = 10.0
_MAX_LAYERS = 16

_NAMES = (
    "none; rand with timm's options, such as rand-m9-mstd0.5-inc1; original, originalr, v0 or v0r, perhaps with "
    "-mstd0.5; trivial; or, with pad_crop, cifar10"
)


@dataclass(frozen=True)
class RandAugment:
    """Operations drawn from all, each with one magnitude (Cubuk et al. 2020); ``rand`` of timm.

    Args:
        magnitude: ``m``, from 0 to ``magnitude_max``; greater ones count as that.
        num_layers: ``n``, operations that are drawn for a view.
        probability: ``p``, of each that was drawn.
        magnitude_std: ``mstd``, standard deviation of the magnitude; above 100, magnitudes are drawn evenly from 0 to
            ``magnitude``, and this is infinite.
        magnitude_max: ``mmax``.
        increasing: ``inc``, operations that change more with a greater magnitude, all of them.
        weighted: ``tweights``, moves of the image more often than changes of its colours, and none twice.
    """

    magnitude: float = 10.0
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = MAGNITUDE_MAX
    increasing: bool = False
    weighted: bool = False

    def operations(self) -> tuple[str, ...]:
        """Names of the operations to draw from."""
        if self.weighted:
            return tuple(WEIGHTS)
        return tuple(name + "Increasing" * (self.increasing and name in _MAY_INCREASE) for name in _RAND)


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 pairs of operations, found on ImageNet (Cubuk et al. 2019).

    Args:
        name: ``original``, the paper's; ``v0``, of TensorFlow's EfficientNet; ``originalr`` and ``v0r`` posterise more
            with a greater magnitude.
        magnitude_std: ``mstd``, standard deviation of the magnitudes.
    """

    name: str
    magnitude_std: float = 0.0

    def pairs(self) -> tuple[tuple[Operation, Operation], ...]:
        """The pairs, one of which is drawn for a view."""
        return _PAIRS[self.name]


@dataclass(frozen=True)
class TrivialAugment:
    """One operation at a magnitude drawn evenly (Müller and Hutter 2021), in the paper's wide ranges."""


ViewPolicy = RandAugment | AutoAugment | TrivialAugment


def parse_policy(text: str) -> ViewPolicy | None:
    """The policy of a string; None for ``none``.

    >>> parse_policy("original-mstd0.5")
    AutoAugment(name='original', magnitude_std=0.5)

    Raises:
        ValueError: another string; the message names its faulty part.
    """
    name, *parts = text.split("-")
    if name == "rand":
        return RandAugment(**_options(text, parts, _RAND_OPTIONS))
    if name in _PAIRS:
        return AutoAugment(name, **_options(text, parts, _AUTO_OPTIONS))
    if text == "trivial":
        return TrivialAugment()
    if text == "none":
        return None
    if name in ("3a", "augmix"):
        raise ValueError(f"policy is {text!r}; of timm's policies, {name} is not among ours; it must be {_NAMES}")
    raise ValueError(f"policy is {text!r}; it must be {_NAMES}")


@dataclass(frozen=True)
class _Option:
    """A part of a string: the argument that it sets, and its allowed range."""

    argument: str
    least: float
    most: float
    whole: bool = False


_STD = _Option("magnitude_std", 0, math.inf)
_AUTO_OPTIONS = {"mstd": _STD}
_RAND_OPTIONS = {
    "m": _Option("magnitude", 0, 100),
    "n": _Option("num_layers", 1, _MAX_LAYERS, whole=True),
    "p": _Option("probability", 0, 1),
    "mstd": _STD,
    "mmax": _Option("magnitude_max", 1, 100, whole=True),
    "inc": _Option("increasing", 0, 1, whole=True),
}
# Above it, RandAugment of timm draws magnitudes evenly.
_EVEN_STD = 100


def _options(text: str, parts: list[str], known: Mapping[str, _Option]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d*)?)", part, re.ASCII)
        option = known.get(match[1]) if match else None
        if part == "tweights" and known is _RAND_OPTIONS:
            argument, value = "weighted", True
        elif match is None or option is None:
            words = ", ".join([*known, *(["tweights"] if known is _RAND_OPTIONS else [])])
            raise ValueError(f"policy is {text!r}, of which {part!r} is not known; parts are {words}, and their values")
        else:
            argument, value = option.argument, float(match[2])
            if not option.least <= value <= option.most or (option.whole and not value.is_integer()):
                raise ValueError(
                    f"policy is {text!r}, of which {part!r} is out of range: {match[1]} must be a"
                    f"{' whole' if option.whole else ''} number in [{option.least:g}, {option.most:g}]"
                )
            value = int(value) if argument == "num_layers" else bool(value) if argument == "increasing" else value
            if argument == "magnitude_std" and known is _RAND_OPTIONS and value > _EVEN_STD:
                value = math.inf
        if argument in arguments:
            raise ValueError(f"policy is {text!r}, of which {part!r} is the second of its kind")
        arguments[argument] = value
    return arguments


_MAY_INCREASE = frozenset({"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"})
_RAND = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
#: Operations of ``tweights`` with their weights.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "Rotate": 3.0,
        "ShearX": 2.0,
        "ShearY": 2.0,
        "TranslateXRel": 1.0,
        "TranslateYRel": 1.0,
        "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25,
        "AutoContrast": 0.25,
        "SolarizeIncreasing": 0.05,
        "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05,
        "BrightnessIncreasing": 0.05,
        "Equalize": 0.05,
        "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    }
)

_ORIGINAL: tuple[tuple[Operation, Operation], ...] = (
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
_V0: tuple[tuple[Operation, Operation], ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


def _increasing(pairs: tuple[tuple[Operation, Operation], ...]) -> tuple[tuple[Operation, Operation], ...]:
    def changed(operation: Operation) -> Operation:
        name, probability, magnitude = operation
        return "PosterizeIncreasing" if name.startswith("Posterize") else name, probability, magnitude

    return tuple((changed(first), changed(second)) for first, second in pairs)


_PAIRS = {"original": _ORIGINAL, "originalr": _increasing(_ORIGINAL), "v0": _V0, "v0r": _increasing(_V0)}
