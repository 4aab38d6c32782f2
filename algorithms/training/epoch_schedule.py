"""Sets learning rates by the position in epochs in a Composer Trainer.

Composer's schedulers turn epochs into batches by the length of the current epoch and step before the clock moves on. A
milestone then takes effect one batch late, and drifts if epochs differ in length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from mixsize.algorithms.training.schedules import Schedule
from mixsize.algorithms.training.training_clock import TrainingClock


class EpochSchedule(Algorithm):
    """Sets the learning rate before each batch from the position in epochs, in place of the Trainer's ``schedulers``.

    Runs on ``BATCH_START`` and logs ``mixsize/lr``. Has no state of its own: the rate follows from the timestamp.

    Args:
        schedule: for instance :func:`multistep` or :func:`cosine`.
        position: returns the position of the run in the schedule's unit: epochs by default, or
            :func:`elapsed_fraction` for a schedule made for ``epochs=1`` and a run whose length is a time.
        factor: returns a further factor of the step's rate, for instance from the size of its batch; by default 1.

    Example:
        >>> algorithm = EpochSchedule(multistep([30, 60, 80], [0.1, 0.01, 0.001]))
        >>> sampling = MixSizeSampling()  # Its last_shape is (size_px, batch_size, duplicates) of the step.
        >>> by_batch = EpochSchedule(cosine(90), factor=lambda state: (sampling.last_shape[1] / 256) ** 0.5)
    """

    def __init__(
        self,
        schedule: Schedule,
        position: Callable[[State], float] | None = None,
        factor: Callable[[State], float] | None = None,
    ) -> None:
        self._schedule = schedule
        self._position = position or position_in_epochs
        self._factor = factor

    def match(self, event: Event, state: State) -> bool:
        """Run before each training batch."""
        return event == Event.BATCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the learning rate of every parameter group."""
        factor = self._schedule(self._position(state)) * (1.0 if self._factor is None else self._factor(state))
        for optimizer in state.optimizers:
            set_learning_rate(optimizer, factor)
        logger.log_metrics({"mixsize/lr": state.optimizers[0].param_groups[0]["lr"]})


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group ``factor`` times the learning rate that it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def position_in_epochs(state: State) -> float:
    """Epochs trained so far, with the fraction of the current epoch by its own length."""
    done = int(state.timestamp.epoch)
    if state.dataloader_len is None:
        return float(done)
    return done + int(state.timestamp.batch_in_epoch) / int(state.dataloader_len)


def elapsed_fraction(seconds: float, clock: TrainingClock) -> Callable[[State], float]:
    """Returns the elapsed fraction of a run of ``seconds`` of training, by a clock on which the ranks agree."""
    return lambda state: clock.seconds / seconds
