"""Smaller copies of an image: their sizes and their making.

A level is named by its denominator d: 2 for half of the full image's height and width, 4 for a quarter. Its sides are
the full image's divided by d and rounded up, and its pixels are exact averages over areas: pixel ``(y, x)`` of a level
of ``h x w`` averages rows ``y * H / h`` to ``(y + 1) * H / h`` of the full image's ``H``, and columns in the same way;
parts of pixels count by their share. A position in the full image therefore scales by ``h / H`` and ``w / W``, without
an offset, even where a side is odd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixsize.ffcv_loaders.engine import native

DENOMINATORS = (2, 4, 8)
#: Levels whose shorter side would be below this many pixels are left out.
MIN_SIDE = 32
#: Levels that would take more than this share of the bytes of the next larger stored copy are left out.
MAX_SHARE = 0.75

# With chroma at full resolution; at half, the same fidelity takes a third more bytes (docs/file-format.md).
_QUALITY = 85


def check_denominators(denominators: Sequence[int]) -> tuple[int, ...]:
    """The denominators as a tuple.

    Raises:
        ValueError: they are not 2, 4 and 8, or some of them, in ascending order.
    """
    whole = all(type(value) is int for value in denominators)
    if not whole or list(denominators) != [value for value in DENOMINATORS if value in denominators]:
        listed = ",".join(map(str, denominators))
        raise ValueError(f"levels are {listed}, allowed are 2, 4 and 8, or some of them, in ascending order")
    return tuple(denominators)


def level_side(side, denominator: int):
    """Pixels on a level's side, from those of the full image: an int or an array of them."""
    return -(-side // denominator)


def field_name(denominator: int) -> str:
    """Name of the FFCV field that holds a level; ``image`` for the full image, of denominator 1."""
    return "image" if denominator == 1 else f"image_{denominator}"


def shrink(pixels: np.ndarray, denominator: int) -> np.ndarray:
    """Pixels of a level, uint8 RGB, from the full image's ``(height, width, 3)``."""
    height, width = (level_side(side, denominator) for side in pixels.shape[:2])
    return native.resize(pixels, (height, width), native.AREA)


def encode_level(level: np.ndarray) -> bytes:
    """JPEG bytes of a level's ``(height, width, 3)`` uint8 RGB pixels."""
    # Not with Pillow: its optimised Huffman tables fail on noisy images, whose bytes its buffer does not hold.
    return native.encode(level, _QUALITY)
