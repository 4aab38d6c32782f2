"""Where a run's seconds go: waiting for data, steps by shape, evaluation."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.mixsize_sampling import MixSizeSampling, Shape


class Times(Callback):
    """Wall-clock of this process, kept apart by what it was spent on, over all starts of a run.

    A step reads its loss off the device, so its end is also the end of its kernels. A shape's first step in a process
    is left out of its mean, as kernels are chosen and memory is reserved in it, but not of the sums.

    Args:
        sampling: what knows the shape of the step at hand.

    Attributes:
        seconds: sums by ``"data_wait"``, ``"steps"`` and ``"evaluation"`` (calibration included).
    """

    def __init__(self, sampling: MixSizeSampling) -> None:
        self._sampling = sampling
        self.seconds = {"data_wait": 0.0, "steps": 0.0, "evaluation": 0.0}
        self._by_shape: defaultdict[Shape, list[float]] = defaultdict(lambda: [0.0, 0])
        self._warm: set[Shape] = set()
        self._since = 0.0

    def step_seconds(self, shape: Shape) -> float | None:
        """Mean seconds of a step of a shape, or None where there was none but the first."""
        total, count = self._by_shape.get(shape, (0.0, 0))
        return total / count if count else None

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The wait for a batch begins."""
        self._since = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """The batch is there."""
        self.seconds["data_wait"] += time.perf_counter() - self._since

    def batch_start(self, state: State, logger: Logger) -> None:
        """The step begins."""
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """The step has ended."""
        spent = time.perf_counter() - self._since
        self.seconds["steps"] += spent
        shape = self._sampling.last_shape
        if shape in self._warm:
            total = self._by_shape[shape]
            total[0] += spent
            total[1] += 1
        elif shape is not None:
            self._warm.add(shape)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Evaluation begins."""
        self._since = time.perf_counter()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Evaluation has ended."""
        self.seconds["evaluation"] += time.perf_counter() - self._since

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, in plain values."""
        return {
            "seconds": dict(self.seconds),
            "by_shape": [[*shape, *total] for shape, total in sorted(self._by_shape.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds = dict(state["seconds"])
        for size_px, batch_size, duplicates, total, count in state["by_shape"]:
            self._by_shape[size_px, batch_size, duplicates] = [total, count]
