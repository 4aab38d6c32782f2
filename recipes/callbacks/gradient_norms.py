"""How large the network's gradient is at each image size, before and after smoothing."""

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
    """Mean and spread of the L2 norm over all gradients of the trained parameters, by image side.

    Sums stay on the device, in double precision, until a checkpoint or the end asks for them: a step costs a few small
    kernels and, without smoothing, one pass over the gradients, and no host synchronisation. A step whose norm is
    not finite does not count.

    Args:
        sampling: what knows the side of the step at hand.
        smoothing: whose norms are taken over; None without smoothing, and the norm is measured here.
    """

    def __init__(self, sampling: MixSizeSampling, smoothing: GradSmoothing | None) -> None:
        self._sampling = sampling
        self._smoothing = smoothing
        #: Side -> (count, sum, sum of squares) before smoothing and the two sums after it, shape (5,).
        self._sums: dict[int, torch.Tensor] = {}
        #: The newest step with finite norms, counted from 1, on the device; None before this start's first.
        self._sound: torch.Tensor | None = None

    @torch.no_grad()
    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Add the step's norms to its side's sums."""
        if self._smoothing is None:
            before = after = gradient_norm(trained_parameters(state))
        elif self._smoothing.last is None:
            before = after = None
        else:
            before = self._smoothing.last.grad_norm
            after = before * self._smoothing.last.factor
        if before is None or after is None:
            return
        before, after = before.double(), after.double()
        counted = before.isfinite() & after.isfinite()
        done = int(state.timestamp.batch)
        sound = torch.full_like(before, done) if self._sound is None else self._sound.to(before.device)
        self._sound = torch.where(counted, torch.full_like(before, done + 1), sound)
        values = torch.stack([torch.ones_like(before), before, before.square(), after, after.square()])
        values = torch.where(counted, values, torch.zeros_like(values))
        assert self._sampling.last_shape is not None
        size_px = self._sampling.last_shape[0]
        sums = self._sums.get(size_px)
        self._sums[size_px] = values if sums is None else sums.to(values.device) + values

    def not_finite_since(self) -> int | None:
        """The first of the steps, up to the newest, whose norm was not finite; None before any. Reads the device.

        One more than the newest step where that step's was.
        """
        return None if self._sound is None else int(self._sound) + 1

    def rows(self) -> list[GradientNormRow]:
        """By side, the largest first; reads the sums off the device."""
        rows = []
        for size_px, sums in sorted(self._sums.items(), reverse=True):
            steps, *rest = sums.tolist()
            if not steps:
                continue
            mean, std = _mean_and_std(steps, *rest[:2])
            smoothed = _mean_and_std(steps, *rest[2:]) if self._smoothing is not None else (None, None)
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
        """Take up the sums."""
        self._sums = {size_px: torch.tensor(sums, dtype=torch.float64) for size_px, *sums in state["sums"]}


def _mean_and_std(steps: float, total: float, squares: float) -> tuple[float, float | None]:
    mean = total / steps
    if steps < 2:
        return mean, None
    return mean, math.sqrt(max(0.0, squares - steps * mean**2) / (steps - 1))
