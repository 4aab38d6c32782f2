"""The training settings whose strength a progression may set, and their values by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from mixsize.algorithms.regime.checks import check_member, is_number

#: Setting -> what its value stays below: the magnitude of an augmentation policy, the parameters of Mixup and CutMix,
#: the rates of dropout and stochastic depth, the probability mass of label smoothing.
STRENGTHS: Mapping[str, float] = MappingProxyType(
    {
        "magnitude": math.inf,
        "mixup": math.inf,
        "cutmix": math.inf,
        "dropout": 1.0,
        "drop_path": 1.0,
        "label_smoothing": 1.0,
    }
)

#: The values in the first and in the last of some epochs.
Ramp = tuple[float, float]


def as_ramps(where: str, strengths: Mapping[str, float | Ramp]) -> dict[str, Ramp]:
    """Strengths in order of their names; a number is held.

    Raises:
        ValueError: an unknown name, or a value that is not a number of its range, or two of them.
    """
    if not isinstance(strengths, Mapping):
        raise ValueError(f"{where} is {strengths!r}; it must be a mapping of settings to numbers or pairs of numbers")
    ramps = {}
    for name in strengths:
        check_member(f"a name in {where}", name, STRENGTHS)
    for name in sorted(strengths):
        value = strengths[name]
        ends = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        if len(ends) != 2 or not all(is_number(end) and 0 <= end < STRENGTHS[name] for end in ends):
            bound = "of at least 0" if STRENGTHS[name] == math.inf else f"in [0, {STRENGTHS[name]:g})"
            raise ValueError(f"{where}.{name} is {value!r}; it must be a number {bound}, or two of them")
        ramps[name] = (float(ends[0]), float(ends[1]))
    return ramps


def ramp_at(ramp: Ramp, epoch: float, epochs: int) -> float:
    """The value in an epoch, from 0, of so many: the first one's, the last one's or between them in a line.

    A single epoch has the first value, epochs after the last one have the last value.

    Example:
        >>> [ramp_at((0.0, 9.0), epoch, epochs=10) for epoch in (0, 5, 9, 12)]
        [0.0, 5.0, 9.0, 9.0]
    """
    first, last = ramp
    if first == last:
        return first
    done = min(1.0, epoch / (epochs - 1)) if epochs > 1 else 0.0
    return (1 - done) * first + done * last
