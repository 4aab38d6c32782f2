"""The training time of a run."""

from __future__ import annotations

import time
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class TrainingClock(Callback):
    """Seconds of training so far, over all starts of a run: from asking for each batch to the end of its step.

    Evaluations, checkpoints and set-up do not count. The clock is monotonic, unlike Composer's ``timestamp.total_wct``.

    Args:
        agree: take the mean over the ranks at every step, for decisions that all ranks must take alike.

    Attributes:
        seconds: of training.

    Example:
        >>> clock = TrainingClock(agree=True)
        >>> clock.seconds
        0.0
    """

    def __init__(self, agree: bool = False) -> None:
        self.seconds = 0.0
        self._agree = agree
        self._since = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the clock."""
        spent = time.perf_counter() - self._since
        if self._agree and dist.get_world_size() > 1:
            of_all = state.device.tensor_to_device(torch.tensor([spent], dtype=torch.float64))
            dist.all_reduce(of_all)
            spent = float(of_all.item()) / dist.get_world_size()
        self.seconds += spent

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the seconds."""
        self.seconds = float(state["seconds"])
