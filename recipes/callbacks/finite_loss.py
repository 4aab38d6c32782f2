"""Ends a run whose loss is not finite."""

from __future__ import annotations

import math

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.recipes.records.step_times import describe_shape


class FiniteLoss(Callback):
    """Ends training with the step whose loss is NaN or infinite, before a checkpoint of it is saved.

    Composer has already read the loss off the device and averaged it over the ranks, so this costs no
    synchronisation and all ranks end together.

    Args:
        sampling: gives the shape of the current step.
        patience_steps: how many such steps in a row end the run. float16's loss scaling skips a step that overflows
            and tries a smaller scale, which takes a few steps.

    Raises:
        FloatingPointError: the message names the step, its shape and the learning rate.
    """

    def __init__(self, sampling: MixSizeSampling, patience_steps: int = 1) -> None:
        self._sampling = sampling
        self._patience = patience_steps
        self._in_a_row = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Check the loss of the step that has ended."""
        losses = (state.total_loss_dict or {}).values()
        bad = next((loss for loss in losses if not math.isfinite(loss)), None)
        self._in_a_row = 0 if bad is None else self._in_a_row + 1
        if bad is None or self._in_a_row < self._patience:
            return
        shape = self._sampling.last_shape
        at = "" if shape is None else f" at {describe_shape(shape)}"
        rate = state.optimizers[0].param_groups[0]["lr"]
        raise FloatingPointError(
            f"the loss of step {int(state.timestamp.batch)}, in epoch {int(state.timestamp.epoch)},{at} is {bad}: "
            f"training has diverged. The learning rate was {rate:.3g}; lower optimizer.lr, or warm it up"
        )
