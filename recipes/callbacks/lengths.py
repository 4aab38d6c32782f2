"""The lengths that a run was given, where it went on with another."""

from __future__ import annotations

import sys
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from tqdm import tqdm

from mixsize.recipes.records.run_record import EarlierLength


class Lengths(Callback):
    """Notes where a run goes on with another ``max_duration``, and says so at the first step; kept in checkpoints.

    Args:
        max_duration: of this start.
        schedule: name of the schedule if the learning rate depends on the length; None if it does not.

    Attributes:
        earlier: the lengths before this one, in order.
    """

    def __init__(self, max_duration: str, schedule: str | None) -> None:
        self.earlier: list[EarlierLength] = []
        self._max_duration = max_duration
        self._schedule = schedule
        self._steps = 0
        self._rate_before: float | None = None
        self._has_changed = False

    def fit_start(self, state: State, logger: Logger) -> None:
        """Read the learning rate of the last step before, which the checkpoint holds."""
        self._rate_before = _rate(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        """At the first step say what changes."""
        if self._has_changed and dist.get_global_rank() == 0:
            line = f"max_duration was {self.earlier[-1].max_duration}, is {self._max_duration}"
            if self._schedule is not None:
                line += (
                    f"; from here on the learning rate is that of {self._schedule} over {self._max_duration}: it was"
                    f" {self._rate_before:.3g} at step {self._steps}, and is {_rate(state):.3g} at step"
                    f" {self._steps + 1}"
                )
            tqdm.write(line, file=sys.stdout)
        self._has_changed = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count the steps."""
        self._steps = int(state.timestamp.batch)

    def state_dict(self) -> dict[str, Any]:
        """The lengths so far, in plain values."""
        return {
            "max_duration": self._max_duration,
            "steps": self._steps,
            "earlier": [length.model_dump() for length in self.earlier],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the lengths, and note the last one if it was another."""
        self.earlier = [EarlierLength.model_validate(length) for length in state["earlier"]]
        self._steps = state["steps"]
        self._has_changed = state["max_duration"] != self._max_duration
        if self._has_changed:
            self.earlier.append(EarlierLength(max_duration=state["max_duration"], steps=self._steps))


def _rate(state: State) -> float:
    return state.optimizers[0].param_groups[0]["lr"]
