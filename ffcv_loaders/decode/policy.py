"""AutoAugment's CIFAR-10 policy and cutout, applied to a view between its crop and its resize.

The paper's order for CIFAR is pad, crop, flip, policy, cutout, then resize to the step's side, so a view is first cut
at its stored size. Every draw is a hash of (seed, epoch, sample, duplicate), see ``augment``:
each duplicate has its own.

Source: Cubuk et al. 2019, "AutoAugment: learning augmentation policies from data"; DeVries and Taylor 2017, "Improved
regularization of convolutional neural networks with cutout".
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
from ffcv.libffcv import ctypes_resize

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import Augment, PadCrop, Policy, uniform, view_key
from mixsize.ffcv_loaders.decode.pixel_operations import (
    AFFINE,
    AUTO_CONTRAST,
    BRIGHTNESS,
    COLOUR,
    CONTRAST,
    EQUALIZE,
    GEOMETRIC,
    INVERT,
    NUM_PARAMETERS,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    affine_matrix,
    copy_pixels,
    fixed_point,
    operate,
)

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
_POLICIES: dict[Policy, tuple[SubPolicy, ...]] = {"none": (), "cifar10": CIFAR10}
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
# Draws of a view's key that are not those of its crop.
_SUB_POLICY, _APPLIED, _SIGN, _CUTOUT_Y, _CUTOUT_X = 64, 65, 67, 69, 70
_PIECES_PER_THREAD = 4


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


def operation_parameters(name: str, magnitude: float, height: int, width: int) -> tuple[float, ...]:
    """The parameters of :func:`~mixsize.ffcv_loaders.decode.pixel_operations.operate` for an operation."""
    if name in GEOMETRIC:
        return fixed_point(affine_matrix(name, magnitude, height, width))
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        magnitude += 1
    return (magnitude, *[0.0] * (NUM_PARAMETERS - 1))


def policy_table(policy: Sequence[SubPolicy], height: int, width: int) -> np.ndarray:
    """A policy as compiled code reads it.

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
    """Refuse a policy or a cutout on images that are not all of one stored size.

    Raises:
        ValueError: several stored sizes, or a cutout larger than the images.
    """
    if not (isinstance(augment, PadCrop) and augment.changes_pixels):
        return
    heights, widths = beton.heights, beton.widths
    if heights.min() != heights.max() or widths.min() != widths.max():
        raise ValueError(
            f"{beton.path}: policy {augment.policy!r} and cutout of {augment.cutout_px} px need images of one stored "
            f"size; these are {heights.min()} to {heights.max()} px high and {widths.min()} to {widths.max()} px wide: "
            "set policy to none and cutout_px to 0"
        )
    if augment.cutout_px > min(heights[0], widths[0]):
        raise ValueError(
            f"cutout_px is {augment.cutout_px}; it must be at most the images' shorter side, "
            f"{min(heights[0], widths[0])} px"
        )


def open_stage(augment: Augment, beton: Beton, mean: Sequence[float], num_workers: int) -> PolicyStage | None:
    """The stage that an augmentation asks for, or None where views go from their crop straight to the step's size.

    Raises:
        ValueError: see :func:`check_stored_sizes`.
    """
    if isinstance(augment, PadCrop) and augment.changes_pixels:
        return PolicyStage(augment, beton, mean, num_workers)
    return None


class PolicyStage:
    """Brings views that were cut at their stored size to the step's: policy, cutout, resize.

    Args:
        augment: names the policy and the cutout's side.
        beton: the data set, all of one stored size.
        mean: of each channel on the 0..1 scale. Rounded to 8 bits it fills the pixels that a policy moves in from
            outside and those that cutout removes, as where cutout follows normalisation (the paper's released code).
        num_workers: threads, at least 1.

    Raises:
        ValueError: see :func:`check_stored_sizes`.
    """

    def __init__(self, augment: PadCrop, beton: Beton, mean: Sequence[float], num_workers: int) -> None:
        check_stored_sizes(augment, beton)
        self._stored = (int(beton.heights[0]), int(beton.widths[0]))
        self._table = policy_table(_POLICIES[augment.policy], *self._stored)
        self._cutout_px = augment.cutout_px
        self._fill = np.rint(255 * np.asarray(mean, dtype=np.float64)).astype(np.uint8)
        self._num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="mixsize-policy") if num_workers > 1 else None
        self._canvas = np.empty((0, *self._stored, 3), dtype=np.uint8)

    def canvas(self, num_views: int) -> np.ndarray:
        """Memory for views at their stored size, uint8, shape ``(num_views, H, W, 3)``; overwritten by the next."""
        if len(self._canvas) < num_views:
            self._canvas = np.empty((num_views, *self._stored, 3), dtype=np.uint8)
        return self._canvas[:num_views]

    def finish(
        self, views: np.ndarray, samples: np.ndarray, duplicates: int, seed: int, epoch: int, out: np.ndarray
    ) -> None:
        """Fill a batch.

        Args:
            views: cropped and mirrored, from :meth:`canvas`, shape ``(B * D, H, W, 3)``; overwritten.
            samples: their images' indices in the data set, shape ``(B,)``.
            duplicates: views D of each image.
            seed: the run's seed.
            epoch: from 0.
            out: destination, uint8, C-contiguous, shape ``(B * D, S, S, 3)``.
        """
        assert len(views) == len(out) == len(samples) * duplicates
        samples = samples.astype(np.uint64)

        def work(start: int, end: int) -> None:
            _finish_piece(
                views[start * duplicates : end * duplicates],
                samples[start:end],
                duplicates,
                np.uint64(seed),
                np.uint64(epoch),
                self._table,
                self._cutout_px,
                self._fill,
                np.empty((*self._stored, 3), dtype=np.uint8),
                out[start * duplicates : end * duplicates],
            )

        if self._pool is None:
            work(0, len(samples))
            return
        pieces = np.linspace(0, len(samples), self._num_workers * _PIECES_PER_THREAD + 1).astype(int)
        for future in [self._pool.submit(work, *ends) for ends in pairwise(pieces)]:
            future.result()

    def close(self) -> None:
        """End the threads; waits for the batch in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


@numba.njit(nogil=True)
def _finish_piece(views, samples, duplicates, seed, epoch, table, cutout_px, fill, scratch, out):
    for i in range(len(samples)):
        for d in range(duplicates):
            view = views[i * duplicates + d]
            target = out[i * duplicates + d]
            key = view_key(seed, epoch, samples[i], np.uint64(d))
            if len(table) > 0:
                sub_policy = table[int(uniform(key, _SUB_POLICY) * len(table))]
                for k in range(2):
                    row = sub_policy[k, int(uniform(key, _SIGN + k) * 2)]
                    if uniform(key, _APPLIED + k) < row[_PROBABILITY]:
                        operate(view, int(row[_KIND]), row[_PARAMETERS:], fill, scratch)
            if cutout_px > 0:
                _cut_out(view, uniform(key, _CUTOUT_Y), uniform(key, _CUTOUT_X), cutout_px, fill)
            if view.shape == target.shape:
                copy_pixels(view, target)
            else:
                _resize(view, target)


@numba.njit(nogil=True)
def _cut_out(view, y, x, side, fill):
    """Fill a square about a pixel of the view; its part outside the view is lost."""
    top = int(y * view.shape[0]) - side // 2
    left = int(x * view.shape[1]) - side // 2
    for row in range(max(top, 0), min(top + side, view.shape[0])):
        for column in range(max(left, 0), min(left + side, view.shape[1])):
            for channel in range(3):
                view[row, column, channel] = fill[channel]


@numba.njit(nogil=True)
def _resize(view, target):
    ctypes_resize(
        0,
        view.ctypes.data,
        view.shape[0],
        view.shape[1],
        0,
        view.shape[0],
        0,
        view.shape[1],
        target.ctypes.data,
        target.shape[0],
        target.shape[1],
    )
