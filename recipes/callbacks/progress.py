"""The progress bars of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from tqdm import tqdm

from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.recipes.records.run_record import CALIBRATED, OWN
from mixsize.recipes.records.step_times import describe_shape


class Progress(Callback):
    """One bar over the steps of the run that shows each step's shape, and a line for each evaluation.

    Rank zero draws it on standard error. Its rate and the time left count training alone: from asking for each batch to
    the end of its step. Composer's bar draws another bar for each evaluation size and epoch.

    Args:
        sampling: gives the shape of the current step.
        accuracy: name of the evaluation metric to print, a fraction.
        elapsed: gives the elapsed fraction of a run whose length is a time; None for other runs.
        calibration: tells which batch-norm statistics an evaluation has; None without calibration.
    """

    def __init__(
        self,
        sampling: MixSizeSampling,
        accuracy: str,
        elapsed: Callable[[State], float] | None = None,
        calibration: BNCalibrate | None = None,
    ) -> None:
        self._sampling = sampling
        self._accuracy = accuracy
        self._elapsed = elapsed
        self._calibration = calibration
        self._bar: tqdm | None = None
        self._trained_until = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the bar."""
        if dist.get_global_rank() == 0:
            self._trained_until = time.time()
            self._bar = tqdm(
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
                initial=int(state.timestamp.batch),
                mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; a log file gets few lines
            )

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Go on with the clock."""
        self._leave_out_pause()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Advance the bar and show the shape of the step."""
        if self._bar is None:
            return
        # Epochs may differ in length, so the total is estimated from the current epoch.
        assert state.max_duration is not None
        if self._elapsed is not None:
            self._bar.total = max(int(state.timestamp.batch), round(int(state.timestamp.batch) / self._elapsed(state)))
        elif state.max_duration.unit == TimeUnit.BATCH:
            self._bar.total = int(state.max_duration)
        else:
            left = int(state.max_duration) - int(state.timestamp.epoch)
            done_before = int(state.timestamp.batch) - int(state.timestamp.batch_in_epoch)
            self._bar.total = done_before + left * int(state.dataloader_len or 0)
        assert self._sampling.last_shape is not None
        shape = describe_shape(self._sampling.last_shape)
        self._bar.set_description(f"epoch {int(state.timestamp.epoch)}", refresh=False)
        self._bar.set_postfix_str(f"{shape}, loss {state.total_loss_dict['loss/train/total']:.3f}", refresh=False)
        self._bar.update()
        self._trained_until = time.time()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Print the accuracy at every size."""
        if self._bar is None:
            return
        results = (
            f"{label.removeprefix('eval_')} {100 * float(metrics[self._accuracy].compute()):.1f}"
            for label, metrics in state.eval_metrics.items()
        )
        kind = CALIBRATED if self._calibration is not None and self._calibration.is_active else OWN
        line = f"epoch {int(state.timestamp.epoch)}: top-1 %, {kind}, at {', '.join(results)}"
        self._leave_out_pause()
        self._bar.write(line, file=sys.stderr)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Draw the bar a last time; the last evaluation still prints above it."""
        if self._bar is not None:
            self._leave_out_pause()
            self._bar.refresh()

    def close(self, state: State, logger: Logger) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._leave_out_pause()
            self._bar.close()
            self._bar = None

    def _leave_out_pause(self) -> None:
        """Shift the bar's clock by the time since the last step."""
        if self._bar is None:
            return
        now = time.time()
        pause = now - self._trained_until
        self._bar.start_t += pause
        self._bar.last_print_t += pause
        self._trained_until = now


class EvaluationProgress(Callback):
    """A bar over the batches of each evaluation, which disappears at its end."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def eval_start(self, state: State, logger: Logger) -> None:
        """Open the bar."""
        assert state.dataloader_label is not None
        self._bar = passing_bar(f"evaluating at {state.dataloader_label.removeprefix('eval_')}", state.dataloader_len)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Advance the bar."""
        assert self._bar is not None
        self._bar.update()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Remove the bar."""
        self.close(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        """Remove the bar, after an evaluation that was broken off."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def passing_bar(words: str, total: Any, batches: Iterable[Any] | None = None) -> tqdm:
    """A bar over batches that disappears at its end, on rank zero and on a terminal alone.

    Args:
        words: stand before the bar.
        total: number of batches.
        batches: to iterate over; None for a bar that the caller advances.
    """
    hidden = dist.get_global_rank() != 0 or not sys.stderr.isatty()
    return tqdm(
        batches, words, int(total), leave=False, file=sys.stderr, unit="batch", dynamic_ncols=True, disable=hidden
    )
