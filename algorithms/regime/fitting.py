"""Batches, duplicates and steps fitted to the base's budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from mixsize.algorithms.regime.regime import Base

Rounding = Literal["nearest", "pow2", "budget"]

#: ``budget`` rounding keeps batches a multiple of this: tensor cores idle on ragged ones.
BUDGET_BATCH_MULTIPLE = 8


def fit_batch(size_px: int, base: Base, rounding: Rounding, multiple: int) -> tuple[int, int]:
    """(B, D) of a size under B+: B scales, D stays at the base's.

    Raises:
        ValueError: the batch rounds to 0.
    """
    exact = base.batch_size * (base.size_px / size_px) ** 2
    if rounding == "pow2":
        batch = base.batch_size * _pow2_multiplier(size_px, base)
    elif rounding == "nearest":
        batch = _round_half_up(exact / multiple) * multiple
    else:
        multiple = math.lcm(multiple, BUDGET_BATCH_MULTIPLE)
        batch = base.pixels // (size_px**2 * base.duplicates) // multiple * multiple
    if batch == 0:
        raise _refuse_empty(size_px, exact, multiple)
    return batch, base.duplicates


def fit_duplicates(size_px: int, base: Base, rounding: Rounding, multiple: int) -> tuple[int, int]:
    """(B, D) of a size under D+: D scales, B stays at the base's, if at least one duplicate fits.

    Raises:
        ValueError: the batch rounds to 0.
    """
    exact = base.duplicates * (base.size_px / size_px) ** 2
    if rounding == "pow2":
        return base.batch_size, base.duplicates * _pow2_multiplier(size_px, base)
    if rounding == "nearest":
        duplicates = _round_half_up(exact)
        if duplicates:
            return base.batch_size, duplicates
        # Not even half a duplicate fits: the batch shrinks instead. The paper's released code does so too; it keeps the
        # base's duplicates, where these are several, and shrinks the batch further.
        batch = _round_half_up(base.batch_size * exact / multiple) * multiple
        if batch == 0:
            raise _refuse_empty(size_px, base.batch_size * exact, multiple)
        return batch, 1
    duplicates = max(1, base.pixels // (size_px**2 * base.batch_size))
    multiple = math.lcm(multiple, BUDGET_BATCH_MULTIPLE)
    affordable = min(base.batch_size, base.pixels // (size_px**2 * duplicates))
    batch = affordable // multiple * multiple
    if batch == 0:
        raise _refuse_empty(size_px, affordable, multiple)
    return batch, duplicates


def allocate_samples(shares: np.ndarray, batches: np.ndarray, num_samples: int) -> np.ndarray:
    """Steps of each choice: its share of the images, rounded to the nearest number of whole batches.

    Where the images do not suffice for all that round up, the largest remainders do.
    """
    quota = shares * num_samples / batches
    # The nudge keeps 0.2 * 50_000 at 10_000 where binary fractions make it 9_999.999...
    counts = np.floor(quota + 1e-9).astype(np.int64)
    remainders = quota - counts
    left = num_samples - int(counts @ batches)
    for choice in np.argsort(-remainders, kind="stable"):
        if counts[choice] and remainders[choice] >= 0.5 and batches[choice] <= left:
            counts[choice] += 1
            left -= int(batches[choice])
    return counts


def allocate_steps(shares: np.ndarray, batches: np.ndarray, num_samples: int) -> np.ndarray:
    """Steps of each choice: as many as ``num_samples`` images fill, apportioned by largest remainder."""
    steps = int(num_samples / float(shares @ batches) + 1e-9)
    while True:
        quota = shares * steps
        counts = np.floor(quota + 1e-9).astype(np.int64)
        remainder_order = np.argsort(-(quota - counts), kind="stable")
        counts[remainder_order[: steps - int(counts.sum())]] += 1
        if int(counts @ batches) <= num_samples:
            return counts
        steps -= 1


def _refuse_empty(size_px: int, exact: float, multiple: int) -> ValueError:
    unit = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
    return ValueError(
        f"the batch at {size_px} px rounds to 0: the budget allows {exact:.3g} images and the batch must be {unit}; "
        "use a larger base batch or a smaller size"
    )


def _pow2_multiplier(size_px: int, base: Base) -> int:
    multiplier = 1
    while multiplier * size_px**2 < base.size_px**2:
        multiplier *= 2
    return multiplier


def _round_half_up(x: float) -> int:
    return math.floor(x + 0.5)
