"""A run whose loss is no number ends at once, with its last good checkpoint."""

from __future__ import annotations

import math

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.recipes.callbacks.gradient_norms import GradientNorms
from mixsize.recipes.records.step_times import describe_shape


class FiniteLoss(Callback):
    """Ends training with the step whose loss is NaN or infinite, before anything of it is saved.

    Composer has read the loss off the device by then and averaged it over the ranks: all of them end alike, and nothing
    waits for this.

    Args:
        sampling: what knows the shape of the step at hand.
        gradient_norms: what knows since when the gradients are no numbers: a loss shows it a step later.
        patience_steps: how many such steps in a row end the run. float16's loss scaling skips a step that overflows and
            tries a smaller scale, which takes a few.

    Raises:
        FloatingPointError: naming the step, its shape and the learning rate.
    """

    def __init__(self, sampling: MixSizeSampling, gradient_norms: GradientNorms, patience_steps: int = 1) -> None:
        self._sampling = sampling
        self._gradient_norms = gradient_norms
        self._patience = patience_steps
        self._in_a_row = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Look at the loss of the step that has ended."""
        losses = (state.total_loss_dict or {}).values()
        bad = next((loss for loss in losses if not math.isfinite(loss)), None)
        self._in_a_row = 0 if bad is None else self._in_a_row + 1
        if bad is None or self._in_a_row < self._patience:
            return
        shape = self._sampling.last_shape
        at = "" if shape is None else f" at {describe_shape(shape)}"
        step, since = int(state.timestamp.batch), self._gradient_norms.not_finite_since()
        earlier = "" if since is None or since >= step else f"The gradients have not been finite since step {since}. "
        rate = state.optimizers[0].param_groups[0]["lr"]
        raise FloatingPointError(
            f"the loss of step {step}, in epoch {int(state.timestamp.epoch)},{at} is {bad}: "
            f"training has diverged. {earlier}The learning rate was {rate:.3g}; lower optimizer.lr, or warm it up"
        )
