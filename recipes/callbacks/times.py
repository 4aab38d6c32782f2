"""The seconds of a run by set-up, data wait, steps, evaluation and calibration."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling, Shape


class Times(Callback):
    """Measures the seconds of this rank; the sums are kept in checkpoints.

    Composer reads the loss of each step off the device, so a step ends when its kernels have ended. The sums count all
    steps. The mean of a shape leaves out its first step in a process, in which kernels are chosen and memory is
    reserved.

    Args:
        sampling: gives the shape of the current step.
        calibration: its time is subtracted from evaluation; None without calibration.
        began: ``time.perf_counter()`` at the start of the set-up.
    """

    def __init__(self, sampling: MixSizeSampling, calibration: BNCalibrate | None, began: float) -> None:
        self._sampling = sampling
        self._calibration = calibration
        self._began = began
        self._fit_began: float | None = None
        self._seconds = dict.fromkeys(("fit", "set_up", "data_wait", "steps", "evaluation", "calibration"), 0.0)
        self._by_shape: defaultdict[Shape, list[float]] = defaultdict(lambda: [0.0, 0])
        self._warm: set[Shape] = set()
        self._since = 0.0
        self._calibrated_before = 0.0

    def seconds_so_far(self) -> dict[str, float]:
        """Sums by the keys of :class:`~mixsize.recipes.records.run_record.Seconds`, without ``training``."""
        running = 0.0 if self._fit_began is None else time.perf_counter() - self._fit_began
        return {**self._seconds, "fit": self._seconds["fit"] + running}

    def step_seconds(self, shape: Shape) -> float | None:
        """Mean seconds of a step of a shape; None before its second step."""
        total, count = self._by_shape.get(shape, (0.0, 0))
        return total / count if count else None

    def fit_start(self, state: State, logger: Logger) -> None:
        """End the set-up, which includes a visit of every shape."""
        self.end_set_up()

    def end_set_up(self) -> None:
        """End the set-up, in a run that has no step left to train."""
        self._fit_began = time.perf_counter()
        self._seconds["set_up"] += self._fit_began - self._began

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Begin to wait for a batch."""
        self._since = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """End the wait for a batch."""
        self._seconds["data_wait"] += time.perf_counter() - self._since

    def batch_start(self, state: State, logger: Logger) -> None:
        """Begin a step."""
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """End a step."""
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
        """Begin an evaluation."""
        self._since = time.perf_counter()
        self._calibrated_before = self._calibrated()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """End an evaluation."""
        calibrated = self._calibrated() - self._calibrated_before
        self._seconds["calibration"] += calibrated
        self._seconds["evaluation"] += time.perf_counter() - self._since - calibrated

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Begin an evaluation outside of training."""
        self.eval_before_all(state, logger)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """End an evaluation outside of training."""
        self.eval_after_all(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, in plain values."""
        return {
            "seconds": self.seconds_so_far(),
            "by_shape": [[*shape, *total] for shape, total in sorted(self._by_shape.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums."""
        self._seconds = dict(state["seconds"])
        for size_px, batch_size, duplicates, total, count in state["by_shape"]:
            self._by_shape[size_px, batch_size, duplicates] = [total, count]

    def _calibrated(self) -> float:
        return 0.0 if self._calibration is None else self._calibration.seconds
