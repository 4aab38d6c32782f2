"""Learning rates as plain functions of the position in epochs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

#: Position in epochs, fractions included -> factor of the base learning rate.
Schedule = Callable[[float], float]


def multistep(milestones: Sequence[float], factors: Sequence[float], warmup_epochs: float = 0.0) -> Schedule:
    """Factor 1, then ``factors[i]`` from epoch ``milestones[i]`` on.

    Args:
        milestones: in epochs, in rising order.
        factors: of the base learning rate, not of the preceding factor.
        warmup_epochs: length of a linear rise from 0 at the start.

    Raises:
        ValueError: the lists differ in length, or the milestones do not rise.

    Example:
        >>> schedule = multistep([30, 60, 80], [0.1, 0.01, 0.001])
        >>> [schedule(epoch) for epoch in (0, 29.9, 30, 60)]
        [1.0, 1.0, 0.1, 0.01]
    """
    if len(milestones) != len(factors):
        raise ValueError(f"{len(milestones)} milestones need as many factors, not {len(factors)}")
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"milestones are {list(milestones)}; each must lie above the one before")
    steps = (1.0, *factors)
    return _warmed(lambda epoch: steps[bisect_right(milestones, epoch)], warmup_epochs)


def step_decay(every_epochs: float, factor: float, warmup_epochs: float = 0.0) -> Schedule:
    """Factor 1, multiplied by ``factor`` after every ``every_epochs``, which need not be whole.

    A linear warm-up from 0 rises to 1; falls due within it take effect at its end, as timm's do.

    Example:
        >>> schedule = step_decay(every_epochs=2.5, factor=0.5)
        >>> [schedule(epoch) for epoch in (0, 2.4, 2.5, 5, 8)]
        [1.0, 1.0, 0.5, 0.25, 0.125]
    """
    if every_epochs <= 0:
        raise ValueError(f"every_epochs is {every_epochs}; it must be above 0")
    rise = constant(warmup_epochs)
    return lambda epoch: rise(epoch) if epoch < warmup_epochs else float(factor ** (epoch // every_epochs))


def cosine(epochs: float, final_factor: float = 0.0, warmup_epochs: float = 0.0) -> Schedule:
    """Half a cosine from 1 after the warm-up to ``final_factor`` at ``epochs`` (Loshchilov & Hutter 2017).

    Example:
        >>> schedule = cosine(epochs=90, warmup_epochs=5)
        >>> [round(schedule(epoch), 2) for epoch in (0, 2.5, 5, 47.5, 90)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs is {warmup_epochs}; it must lie below the run's {epochs} epochs")

    def factor(epoch: float) -> float:
        progress = min(1.0, max(0.0, (epoch - warmup_epochs) / (epochs - warmup_epochs)))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return _warmed(factor, warmup_epochs)


def one_cycle(
    epochs: float, peak_fraction: float = 0.3, start_factor: float = 0.04, final_factor: float = 0.0
) -> Schedule:
    """Linear from ``start_factor`` up to 1 at ``peak_fraction`` of the run, then linear to ``final_factor``.

    Example:
        >>> schedule = one_cycle(epochs=10, peak_fraction=0.5, start_factor=0.2)
        >>> [round(schedule(epoch), 2) for epoch in (0, 2.5, 5, 7.5, 10)]
        [0.2, 0.6, 1.0, 0.5, 0.0]
    """
    if not 0 < peak_fraction < 1:
        raise ValueError(f"peak_fraction is {peak_fraction}; it must lie between 0 and 1")
    peak = peak_fraction * epochs

    def factor(epoch: float) -> float:
        if epoch < peak:
            return start_factor + (1 - start_factor) * epoch / peak
        return 1 + (final_factor - 1) * min(1.0, (epoch - peak) / (epochs - peak))

    return factor


def constant(warmup_epochs: float = 0.0) -> Schedule:
    """Factor 1 after a linear warm-up.

    Example:
        >>> schedule = constant(warmup_epochs=5)
        >>> schedule(2.5), schedule(50)
        (0.5, 1.0)
    """
    return _warmed(lambda epoch: 1.0, warmup_epochs)


def _warmed(schedule: Schedule, warmup_epochs: float) -> Schedule:
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs is {warmup_epochs}; it must be at least 0")
    if warmup_epochs == 0:
        return schedule
    return lambda epoch: schedule(epoch) * min(1.0, epoch / warmup_epochs)
