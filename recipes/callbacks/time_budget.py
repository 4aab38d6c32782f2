"""Training for a length of time."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.training.training_clock import TrainingClock

#: What Composer, which takes no length in seconds, is told instead: more than any run comes to.
NO_END = "1000000ep"


class TimeBudget(Callback):
    """Ends training with the step that reaches a wall-clock time, evaluations not counted, over all starts of a run.

    The evaluation and the checkpoint of the end follow as after any other.

    Args:
        seconds: of training.
        clock: that counts them, where ranks agree.
    """

    def __init__(self, seconds: int, clock: TrainingClock) -> None:
        self.seconds = seconds
        self._clock = clock

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop where the time is up."""
        if self.is_over():
            state.stop_training()

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._clock.seconds >= self.seconds
