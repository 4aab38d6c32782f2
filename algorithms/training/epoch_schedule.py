"""Learning rates by epoch, right also where epochs differ in length.

Composer's schedulers turn epochs into batches with the length of the epoch at hand, and are stepped
before the clock moves on, so a milestone takes effect one batch late and drifts where epochs differ
in length. Here the rate is a function of the position in epochs, set before each batch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from mixsize.algorithms.training.training_clock import TrainingClock

#: Position in epochs, fractions included -> factor of the base learning rate.
Schedule = Callable[[float], float]


def multistep(milestones: Sequence[float], factors: Sequence[float], warmup_epochs: float = 0.0) -> Schedule:
    """Factor 1, then ``factors[i]`` from epoch ``milestones[i]`` on.

    Args:
        milestones: rising, in epochs.
        factors: of the base learning rate, not of the one before.
        warmup_epochs: linear rise from 0 at the start.

    Raises:
        ValueError: lists of different lengths, or milestones that do not rise.
    """
    if len(milestones) != len(factors):
        raise ValueError(f"{len(milestones)} milestones need as many factors, not {len(factors)}")
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"milestones are {list(milestones)}; each must lie above the one before")
    steps = (1.0, *factors)
    return _warmed(lambda epoch: steps[bisect_right(milestones, epoch)], warmup_epochs)


def cosine(epochs: float, final_factor: float = 0.0, warmup_epochs: float = 0.0) -> Schedule:
    """Half a cosine from 1 after the warm-up to ``final_factor`` at ``epochs`` (Loshchilov & Hutter 2017)."""

    def factor(epoch: float) -> float:
        progress = min(1.0, max(0.0, (epoch - warmup_epochs) / (epochs - warmup_epochs)))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    if warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs is {warmup_epochs}; it must lie below the run's {epochs} epochs")
    return _warmed(factor, warmup_epochs)


def one_cycle(
    epochs: float, peak_fraction: float = 0.3, start_factor: float = 0.04, final_factor: float = 0.0
) -> Schedule:
    """Linear from ``start_factor`` up to 1 at ``peak_fraction`` of the run, then linear to ``final_factor``."""
    if not 0 < peak_fraction < 1:
        raise ValueError(f"peak_fraction is {peak_fraction}; it must lie between 0 and 1")
    peak = peak_fraction * epochs

    def factor(epoch: float) -> float:
        if epoch < peak:
            return start_factor + (1 - start_factor) * epoch / peak
        return 1 + (final_factor - 1) * min(1.0, (epoch - peak) / (epochs - peak))

    return factor


def constant(warmup_epochs: float = 0.0) -> Schedule:
    """Factor 1 after a linear warm-up."""
    return _warmed(lambda epoch: 1.0, warmup_epochs)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group ``factor`` times the learning rate it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class EpochSchedule(Algorithm):
    """Sets the learning rate before each batch from the position in epochs.

    Runs on :attr:`.Event.BATCH_START`. Needs no state of its own: the rate follows from the timestamp. Use it in place
    of the Trainer's ``schedulers``.

    Args:
        schedule: for instance :func:`multistep` or :func:`cosine`.
        position: where the run stands, in the schedule's unit; epochs, or :func:`elapsed_fraction` for a schedule made
            for ``epochs=1`` and a run whose length is a time.

    Example:
        >>> Trainer(..., algorithms=[EpochSchedule(multistep([30, 60, 80], [0.1, 0.01, 0.001]))])
    """

    def __init__(self, schedule: Schedule, position: Callable[[State], float] | None = None) -> None:
        self._schedule = schedule
        self._position = position or position_in_epochs

    def match(self, event: Event, state: State) -> bool:
        """Run before each training batch."""
        return event == Event.BATCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set every parameter group's learning rate."""
        factor = self._schedule(self._position(state))
        for optimizer in state.optimizers:
            set_learning_rate(optimizer, factor)
        logger.log_metrics({"mixsize/lr": state.optimizers[0].param_groups[0]["lr"]})


def position_in_epochs(state: State) -> float:
    """Epochs trained so far, the current one's fraction by its own length."""
    done = int(state.timestamp.epoch)
    if state.dataloader_len is None:
        return float(done)
    return done + int(state.timestamp.batch_in_epoch) / int(state.dataloader_len)


def elapsed_fraction(seconds: float, clock: TrainingClock) -> Callable[[State], float]:
    """The part of a run of so many seconds of training that is over.

    Args:
        seconds: of training.
        clock: attached to the Trainer, where ranks agree.
    """
    return lambda state: clock.seconds / seconds


def _warmed(schedule: Schedule, warmup_epochs: float) -> Schedule:
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs is {warmup_epochs}; it must be at least 0")
    if warmup_epochs == 0:
        return schedule
    return lambda epoch: schedule(epoch) * min(1.0, epoch / warmup_epochs)
