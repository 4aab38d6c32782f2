"""The norm of the network's gradient at each image size, before and after smoothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.execution.composer_model import trained_parameters
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.smoothing.gradient_smoother import gradient_norm
from mixsize.recipes.records.run_record import GradientNormRow


class GradientNorms(Callback):
    """Mean and standard deviation of the L2 norm over all gradients of the trained parameters, by image size.

    Without smoothing, the norms are those after ``optimizer.clip_norm``.

    Sums stay on the device, in double precision, until a checkpoint or the end of the run reads them. A step costs a
    few small kernels and, without smoothing, one pass over the gradients; it does not synchronise with the host. Steps
    whose norm is not finite are not counted.

    Args:
        sampling: gives the size of the current step.
        smoothing: its norms are used; None without smoothing, and the norm is measured here.
    """

    def __init__(self, sampling: MixSizeSampling, smoothing: GradSmoothing | None) -> None:
        self._sampling = sampling
        self._smoothing = smoothing
        #: Size -> (count, sum, sum of squares) before smoothing and the two sums after it, shape (5,).
        self._sums: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Add the step's norms to the sums of its size."""
        if self._smoothing is None:
            before = after = gradient_norm(trained_parameters(state))
        elif self._smoothing.last is None:
            return
        else:
            before = self._smoothing.last.grad_norm
            after = before * self._smoothing.last.factor
        if before is None or after is None:
            return
        before, after = before.double(), after.double()
        values = torch.stack([torch.ones_like(before), before, before.square(), after, after.square()])
        values = torch.where(before.isfinite() & after.isfinite(), values, torch.zeros_like(values))
        assert self._sampling.last_shape is not None
        size_px = self._sampling.last_shape[0]
        sums = self._sums.get(size_px)
        self._sums[size_px] = values if sums is None else sums.to(values.device) + values

    def rows(self) -> list[GradientNormRow]:
        """One row for each size, the largest first; reads the sums off the device."""
        rows = []
        for size_px, sums in sorted(self._sums.items(), reverse=True):
            steps, *before_and_after = sums.tolist()
            if not steps:
                continue
            mean, std = _mean_and_std(steps, *before_and_after[:2])
            smoothed = _mean_and_std(steps, *before_and_after[2:]) if self._smoothing else (None, None)
            rows.append(
                GradientNormRow(
                    size_px=size_px,
                    steps=int(steps),
                    mean=mean,
                    std=std,
                    smoothed_mean=smoothed[0],
                    smoothed_std=smoothed[1],
                )
            )
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The sums in plain values; reads them off the device."""
        return {"sums": [[size_px, *sums.tolist()] for size_px, sums in sorted(self._sums.items())]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums."""
        self._sums = {size_px: torch.tensor(sums, dtype=torch.float64) for size_px, *sums in state["sums"]}


def _mean_and_std(steps: float, total: float, squares: float) -> tuple[float, float | None]:
    mean = total / steps
    if steps < 2:
        return mean, None
    return mean, math.sqrt(max(0.0, squares - steps * mean**2) / (steps - 1))
