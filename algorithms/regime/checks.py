"""Checks of numbers and words, and the limits of plans."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import numpy as np

#: The largest side in pixels: that of a JPEG.
MAX_SIZE_PX = 65_535
#: The largest batch and the most duplicates: plans keep them in 32 bits.
MAX_COUNT = 2**31 - 1
#: Pixels of a step, over all ranks, whose bytes can be counted in 64 bits.
MAX_STEP_PIXELS = 2**61
#: Images of a data set that floats can count one by one.
MAX_SAMPLES = 2**53
#: The longest run.
MAX_EPOCHS = 1_000_000


def check_count(where: str, value: int, most: int = MAX_COUNT, least: int = 1) -> None:
    """Refuse a value that is not a whole number from ``least`` to ``most``.

    Raises:
        ValueError: names ``where``, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{where} is {value!r}; it must be a whole number from {least} to {most}")


def check_share(where: str, value: float) -> None:
    """Refuse a value that is not a number in (0, 1].

    Raises:
        ValueError: names ``where``, the value and the range.
    """
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{where} is {value!r}; it must lie in (0, 1]")


def check_member(where: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of the allowed words.

    Raises:
        ValueError: names ``where``, the value and the words.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(allowed)}")


def check_stride(sizes: Iterable[int], stride_px: int, network: str = "the network") -> None:
    """Refuse sizes that a network of this total stride would have to pad or cut.

    Raises:
        ValueError: a size that is not a multiple of ``stride_px``; the message names the nearest multiples. A stride
            that is not a whole number of at least 1.
    """
    check_count("stride", stride_px)
    for size in sizes:
        if size % stride_px:
            below = size // stride_px * stride_px
            near = f"{below} and {below + stride_px}" if below else f"{stride_px}"
            raise ValueError(
                f"size {size} px is not a multiple of the stride {stride_px} of {network} (nearest: {near} px); "
                "change the size, or give regime.stride, the pixels that sizes must be multiples of in place of the "
                "network's stride: 1 accepts any size, whose feature maps the network rounds"
            )


def is_number(value: object) -> bool:
    """Whether a value is a real number; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
