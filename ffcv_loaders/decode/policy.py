"""AutoAugment's CIFAR-10 policy and cutout, applied to a view between its crop and its resize.

The order is pad, crop, flip, policy, cutout, then resize to the step's side: a view is cut at its stored size, and a
cutout takes the same part of it at every side. The paper gives no order. Its released code resizes after the crop and
cuts 16 px at every side. Every draw is a hash of (seed, epoch, sample, duplicate), see ``augment``:
each duplicate has its own.

Source: Cubuk et al. 2019, "AutoAugment: learning augmentation policies from data"; DeVries and Taylor 2017, "Improved
regularization of convolutional neural networks with cutout".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import Augment, PadCrop
from mixsize.ffcv_loaders.engine.native import (
    AFFINE,
    AUTO_CONTRAST,
    BRIGHTNESS,
    COLOUR,
    CONTRAST,
    EQUALIZE,
    INVERT,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    Policy,
)

#: Operations that move pixels by a matrix; all are AFFINE.
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
#: Numbers that an operation takes: the six entries of a matrix, or one strength.
NUM_PARAMETERS = 6
_FIXED_POINT = 65536
#: Two operations, each with its probability and its magnitude from 0 to 9 (0 where it takes none).
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]

#: The 25 sub-policies found on CIFAR-10 (Cubuk et al., appendix), one of which is drawn for each view.
CIFAR10: tuple[SubPolicy, ...] = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
#: AutoAugment's name of an operation -> its kind of change to the pixels.
KINDS = {
    **dict.fromkeys(GEOMETRIC, AFFINE),
    "AutoContrast": AUTO_CONTRAST,
    "Brightness": BRIGHTNESS,
    "Color": COLOUR,
    "Contrast": CONTRAST,
    "Equalize": EQUALIZE,
    "Invert": INVERT,
    "Posterize": POSTERIZE,
    "Sharpness": SHARPNESS,
    "Solarize": SOLARIZE,
}
# The largest translation, as a fraction of the side: 150 pixels of the 331 that the policies were searched at.
_TRANSLATION = 150 / 331
_STEPS = 9
# Columns of a table row: operation, probability, parameters of `operate`.
_KIND, _PROBABILITY, _PARAMETERS = range(3)


def magnitude_of(name: str, level: int, height: int, width: int) -> float:
    """The value of a magnitude from 0 to 9 for an image of this size; the operation may use its negative."""
    part = level / _STEPS
    ranges = {
        "ShearX": 0.3 * part,
        "ShearY": 0.3 * part,
        "TranslateX": _TRANSLATION * width * part,
        "TranslateY": _TRANSLATION * height * part,
        "Rotate": 30 * part,
        "Posterize": 8 - round(4 * part),
        "Solarize": 255 * (1 - part),
        "AutoContrast": 0.0,
        "Equalize": 0.0,
        "Invert": 0.0,
    }
    return float(ranges.get(name, 0.9 * part))


def affine_matrix(name: str, magnitude: float, height: int, width: int) -> tuple[float, ...]:
    """The matrix that gives each pixel of the result its place in the source, as Pillow's ``Image.transform`` takes it.

    Args:
        name: one of :data:`GEOMETRIC`.
        magnitude: slope of a shear; pixels of a translation, cut to whole ones; degrees of a rotation about the centre,
            counter-clockwise.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (a, b, c, d, e, f): the source of (x, y) is (a x + b y + c, d x + e y + f).
    """
    if name == "ShearX":
        return (1.0, magnitude, 0.0, 0.0, 1.0, 0.0)
    if name == "ShearY":
        return (1.0, 0.0, 0.0, magnitude, 1.0, 0.0)
    if name == "TranslateX":
        return (1.0, 0.0, float(-int(magnitude)), 0.0, 1.0, 0.0)
    if name == "TranslateY":
        return (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(magnitude)))
    assert name == "Rotate"
    angle = -math.radians(magnitude)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def fixed_point(matrix: tuple[float, ...]) -> tuple[int, ...]:
    """A matrix in the 16.16 fixed point that Pillow steps through pixels with, centres of pixels taken into account."""
    a, b, c, d, e, f = matrix
    entries = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return tuple(math.floor(entry * _FIXED_POINT + 0.5) for entry in entries)


def operation_parameters(name: str, magnitude: float, height: int, width: int) -> tuple[float, ...]:
    """The parameters of an operation, as policy.c takes them."""
    if name in GEOMETRIC:
        return fixed_point(affine_matrix(name, magnitude, height, width))
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        magnitude += 1
    return (magnitude, *[0.0] * (NUM_PARAMETERS - 1))


def policy_table(policy: Sequence[SubPolicy], height: int, width: int) -> np.ndarray:
    """A policy as the engine reads it.

    Args:
        policy: its sub-policies.
        height: of the images in pixels.
        width: of the images in pixels.

    Returns:
        float64, shape ``(sub-policies, 2 operations, 2 signs, 2 + 6)``: kind, probability, parameters.
    """
    table = np.zeros((len(policy), 2, 2, _PARAMETERS + NUM_PARAMETERS))
    for i, sub_policy in enumerate(policy):
        for k, (name, probability, level) in enumerate(sub_policy):
            magnitude = magnitude_of(name, level, height, width)
            one_sided = name in ("Posterize", "Solarize")
            for s, sign in enumerate((1, 1 if one_sided else -1)):
                parameters = operation_parameters(name, sign * magnitude, height, width)
                table[i, k, s] = (KINDS[name], probability, *parameters)
    return table


def check_stored_sizes(augment: Augment, beton: Beton) -> None:
    """Refuse a policy at the stored size, or a cutout, on images that are not all of one.

    Raises:
        ValueError: several stored sizes, or a cutout larger than the images.
    """
    if isinstance(augment, PadCrop) and augment.changes_pixels:
        check_one_size(augment, beton.path, beton.heights, beton.widths)


def check_one_size(augment: PadCrop, where: object, heights: np.ndarray, widths: np.ndarray) -> None:
    """Refuse images, which ``where`` names, that are not all of one size, or smaller than the cutout.

    Raises:
        ValueError: see :func:`check_stored_sizes`.
    """
    if heights.min() != heights.max() or widths.min() != widths.max():
        policy = "cifar10" if augment.policy == "cifar10" else "none"
        raise ValueError(
            f"{where}: policy {policy!r} and cutout of {augment.cutout_px} px need images of one stored "
            f"size; these are {heights.min()} to {heights.max()} px high and {widths.min()} to {widths.max()} px wide: "
            f"set {'policy to none and ' if policy == 'cifar10' else ''}cutout_px to 0"
        )
    if augment.cutout_px > min(heights[0], widths[0]):
        raise ValueError(
            f"cutout_px is {augment.cutout_px}; it must be at most the images' shorter side, "
            f"{min(heights[0], widths[0])} px"
        )


def open_policy(augment: Augment, beton: Beton, mean: Sequence[float], seed: int, epoch: int) -> Policy | None:
    """What changes views between their crop and their resize, or None where they go straight to the step's size.

    Args:
        augment: names the policy and the cutout's side.
        beton: the data set, all of one stored size.
        mean: see :func:`make_policy`.
        seed: the run's seed.
        epoch: from 0.

    Raises:
        ValueError: see :func:`check_stored_sizes`.
    """
    if not (isinstance(augment, PadCrop) and augment.changes_pixels):
        return None
    check_stored_sizes(augment, beton)
    return make_policy(augment, int(beton.heights[0]), int(beton.widths[0]), mean, seed, epoch)


def make_policy(augment: PadCrop, height: int, width: int, mean: Sequence[float], seed: int, epoch: int) -> Policy:
    """What changes views between their crop and their resize.

    Args:
        augment: names the policy and the cutout's side.
        height: of the stored images in pixels.
        width: of the stored images in pixels.
        mean: of each channel on the 0..1 scale. Rounded to 8 bits it fills the pixels that a policy moves in from
            outside and those that cutout removes, as where cutout follows normalisation (the paper's released code).
        seed: the run's seed.
        epoch: from 0.
    """
    table = policy_table(CIFAR10 if augment.policy == "cifar10" else (), height, width)
    return Policy(table, augment.cutout_px, mean_colour(mean), seed, epoch)


def mean_colour(mean: Sequence[float]) -> np.ndarray:
    """The mean of each channel, on the 0..1 scale, in 8 bits: uint8, shape ``(3,)``."""
    return np.rint(255 * np.asarray(mean, dtype=np.float64)).astype(np.uint8)
