"""AutoAugment's operations on one uint8 image, bit for bit as Pillow does them, in compiled code.

Pillow itself manages about 7,000 images of 32 x 32 px a second, on two threads as on one: it keeps the interpreter
lock. These hold no lock, allocate nothing and work in place.

Source: Cubuk et al. 2019, "AutoAugment: learning augmentation policies from data", appendix.
"""

from __future__ import annotations

import math

import numba
import numpy as np

#: Kinds of change to the pixels; `operate` takes one of these.
(AFFINE, AUTO_CONTRAST, BRIGHTNESS, COLOUR, CONTRAST, EQUALIZE, INVERT, POSTERIZE, SHARPNESS, SOLARIZE) = range(10)
#: Operations that move pixels by a matrix; all are AFFINE.
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
#: Numbers that an operation takes: the six entries of a matrix, or one strength.
NUM_PARAMETERS = 6
_FIXED_POINT = 65536


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


@numba.njit(nogil=True)
def operate(image, kind, parameters, fill, scratch):
    """Change an image in place.

    Args:
        image: uint8, shape ``(H, W, 3)``, RGB.
        kind: AFFINE and so on.
        parameters: float64, shape ``(6,)``: the entries of :func:`fixed_point` for AFFINE; for the others the first
            alone: the factor of BRIGHTNESS, COLOUR, CONTRAST and SHARPNESS (1 changes nothing), the bits that POSTERIZE
            keeps, the value that SOLARIZE inverts from.
        fill: uint8, shape ``(3,)``: colour of the pixels that AFFINE moves in from outside.
        scratch: uint8, of the image's shape; overwritten.
    """
    strength = parameters[0]
    if kind == AFFINE:
        _move(image, parameters, fill, scratch)
    elif kind == AUTO_CONTRAST:
        _stretch_contrast(image)
    elif kind in (BRIGHTNESS, COLOUR, CONTRAST):
        _blend_with_grey(image, kind, np.float32(strength))
    elif kind == EQUALIZE:
        _equalize(image)
    elif kind == SHARPNESS:
        _sharpen(image, np.float32(strength), scratch)
    else:
        _map_values(image, kind, strength)


@numba.njit(nogil=True)
def copy_pixels(image, target):
    """Copy an image ``(H, W, 3)``; an assignment of whole arrays would take a second to compile."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                target[y, x, channel] = image[y, x, channel]


@numba.njit(nogil=True)
def _move(image, parameters, fill, scratch):
    copy_pixels(image, scratch)
    height, width = image.shape[0], image.shape[1]
    step_x, step_y = int(parameters[0]), int(parameters[3])
    for y in range(height):
        x_in = int(parameters[2]) + y * int(parameters[1])
        y_in = int(parameters[5]) + y * int(parameters[4])
        for x in range(width):
            column, row = x_in >> 16, y_in >> 16
            if 0 <= column < width and 0 <= row < height:
                for channel in range(3):
                    image[y, x, channel] = scratch[row, column, channel]
            else:
                for channel in range(3):
                    image[y, x, channel] = fill[channel]
            x_in += step_x
            y_in += step_y


@numba.njit(nogil=True)
def _map_values(image, kind, strength):
    mask = 0xFF
    if kind == POSTERIZE:
        mask = ~((1 << (8 - int(strength))) - 1) & 0xFF
    inverted_from = 0.0 if kind == INVERT else strength if kind == SOLARIZE else 256.0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                value = int(image[y, x, channel])
                image[y, x, channel] = (value if value < inverted_from else 255 - value) & mask


@numba.njit(nogil=True)
def _stretch_contrast(image):
    for channel in range(3):
        low, high = 255, 0
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                value = int(image[y, x, channel])
                low, high = min(low, value), max(high, value)
        if high <= low:
            continue
        scale = 255.0 / (high - low)
        offset = -low * scale
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                value = int(image[y, x, channel] * scale + offset)
                image[y, x, channel] = min(max(value, 0), 255)


@numba.njit(nogil=True)
def _equalize(image):
    for channel in range(3):
        counts = np.zeros(256, dtype=np.int64)
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                counts[image[y, x, channel]] += 1
        last = 255
        while counts[last] == 0:
            last -= 1
        step = (image.shape[0] * image.shape[1] - counts[last]) // 255
        if step == 0:
            continue
        below = step // 2
        for value in range(256):
            count = counts[value]
            counts[value] = min(below // step, 255)
            below += count
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                image[y, x, channel] = counts[image[y, x, channel]]


@numba.njit(nogil=True)
def _blend(degenerate, value, factor):
    """The point on the line through two values, 0 at the degenerate one; in single precision, as Pillow."""
    mixed = np.float32(degenerate) + factor * np.float32(value - degenerate)
    return min(max(int(mixed), 0), 255)


@numba.njit(nogil=True)
def _grey(red, green, blue):
    """ITU-R 601 luma, in Pillow's fixed point."""
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@numba.njit(nogil=True)
def _blend_with_grey(image, kind, factor):
    """Blend with black (BRIGHTNESS), with each pixel's own grey (COLOUR) or with the mean grey (CONTRAST)."""
    grey = 0
    if kind == CONTRAST:
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                grey += _grey(int(image[y, x, 0]), int(image[y, x, 1]), int(image[y, x, 2]))
        grey = int(grey / (image.shape[0] * image.shape[1]) + 0.5)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if kind == COLOUR:
                grey = _grey(int(image[y, x, 0]), int(image[y, x, 1]), int(image[y, x, 2]))
            for channel in range(3):
                image[y, x, channel] = _blend(grey, int(image[y, x, channel]), factor)


@numba.njit(nogil=True)
def _sharpen(image, factor, scratch):
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; pixels at the border have no smoothed value."""
    copy_pixels(image, scratch)
    height, width = image.shape[0], image.shape[1]
    for y in range(1, height - 1):
        above, here, below = scratch[y - 1], scratch[y], scratch[y + 1]
        for x in range(1, width - 1):
            for channel in range(3):
                value = int(here[x, channel])
                total = 5 * value + here[x - 1, channel] + here[x + 1, channel]
                total += int(above[x - 1, channel]) + above[x, channel] + above[x + 1, channel]
                total += int(below[x - 1, channel]) + below[x, channel] + below[x + 1, channel]
                image[y, x, channel] = _blend((2 * total + 13) // 26, value, factor)
