"""Where a run's seconds go: set-up, waiting for data, steps by shape, evaluation, calibration."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling, Shape


class Times(Callback):
    """Wall-clock of this process, kept apart by what it was spent on, over all starts of a run.

    A step reads its loss off the device, so its end is also the end of its kernels. A shape's first step in a process
    is left out of its mean, as kernels are chosen and memory is reserved in it, but not of the sums. What a start spent
    after its last checkpoint is lost with the start.

    Args:
        sampling: what knows the shape of the step at hand.
        calibration: whose time is not evaluation's; None where there is none.
        began: when the set-up of this start began, as ``time.perf_counter`` tells it.
    """

    def __init__(self, sampling: MixSizeSampling, calibration: BNCalibrate | None, began: float) -> None:
        self._sampling = sampling
        self._calibration = calibration
        self._began = began
        self._fit_began: float | None = None
        self._seconds = {
            "fit": 0.0, "set_up": 0.0, "data_wait": 0.0, "steps": 0.0, "evaluation": 0.0, "calibration": 0.0,
        }  # fmt: skip
        self._by_shape: defaultdict[Shape, list[float]] = defaultdict(lambda: [0.0, 0])
        self._warm: set[Shape] = set()
        self._since = 0.0
        self._calibrated_before = 0.0

    def seconds_so_far(self) -> dict[str, float]:
        """Sums by ``fit``, ``set_up``, ``data_wait``, ``steps``, ``evaluation`` and ``calibration``.

        ``fit`` is all from the start of training on, whatever it was spent on.
        """
        running = 0.0 if self._fit_began is None else time.perf_counter() - self._fit_began
        return {**self._seconds, "fit": self._seconds["fit"] + running}

    def step_seconds(self, shape: Shape) -> float | None:
        """Mean seconds of a step of a shape, or None where there was none but the first."""
        total, count = self._by_shape.get(shape, (0.0, 0))
        return total / count if count else None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Algorithms have done what they do before the first step, a visit to every shape for instance."""
        self.end_set_up()

    def end_set_up(self) -> None:
        """Training, or what is left of a run to do, begins now."""
        self._fit_began = time.perf_counter()
        self._seconds["set_up"] += self._fit_began - self._began

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The wait for a batch begins."""
        self._since = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """The batch is there."""
        self._seconds["data_wait"] += time.perf_counter() - self._since

    def batch_start(self, state: State, logger: Logger) -> None:
        """The step begins."""
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """The step has ended."""
        spent = time.perf_counter() - self._since
        self._seconds["steps"] += spent
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
        self._calibrated_before = self._calibrated()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Evaluation has ended."""
        calibrated = self._calibrated() - self._calibrated_before
        self._seconds["calibration"] += calibrated
        self._seconds["evaluation"] += time.perf_counter() - self._since - calibrated

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """An evaluation outside of training begins."""
        self.eval_before_all(state, logger)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """An evaluation outside of training has ended."""
        self.eval_after_all(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, in plain values."""
        return {
            "seconds": self.seconds_so_far(),
            "by_shape": [[*shape, *total] for shape, total in sorted(self._by_shape.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        # A checkpoint of an earlier version kept fewer sums.
        self._seconds |= state["seconds"]
        for size_px, batch_size, duplicates, total, count in state["by_shape"]:
            self._by_shape[size_px, batch_size, duplicates] = [total, count]

    def _calibrated(self) -> float:
        return 0.0 if self._calibration is None else self._calibration.seconds
