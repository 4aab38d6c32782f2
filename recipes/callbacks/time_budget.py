"""Training for a given time."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.training.training_clock import TrainingClock

#: Composer takes no length in seconds; it gets this one, which no run reaches.
NO_END = "1000000ep"


class TimeBudget(Callback):
    """Ends training with the step that reaches a training time.

    All starts of a run count together; evaluations do not count. The last evaluation and checkpoint follow as in any
    other run.

    Args:
        seconds: of training.
        clock: counts the seconds; the ranks must agree on them.
    """

    def __init__(self, seconds: int, clock: TrainingClock) -> None:
        self.seconds = seconds
        self._clock = clock

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop if the time is up."""
        if self.is_over():
            state.stop_training()

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._clock.seconds >= self.seconds
