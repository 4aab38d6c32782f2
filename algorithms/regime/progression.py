"""Regimes whose image size grows during training: phases, or a ramp.

Source: fast.ai's progressive resizing; MixSize (ICLR 2021 submission), appendix E, compares it with drawing sizes
per step and per epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import get_args

from mixsize.algorithms.regime.checks import (
    MAX_EPOCHS,
    MAX_SIZE_PX,
    check_count,
    check_member,
    check_stride,
    is_number,
)
from mixsize.algorithms.regime.fitting import Rounding
from mixsize.algorithms.regime.regime import Base, Choice, Regime


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs at one image size.

    Args:
        size_px: image side S in pixels.
        epochs: how many epochs, at least 1.
        batch_size: distinct images B in a step, over all ranks; None fits it to the base's budget.
        lr_factor: factor of the learning rate that other algorithms or schedulers set.
        crop_scale: least and greatest area of a random resized crop in this phase; None keeps the loader's.

    Example:
        >>> phase = Phase(size_px=128, epochs=30, lr_factor=0.5, crop_scale=(0.35, 1.0))
    """

    size_px: int
    epochs: int
    batch_size: int | None = None
    lr_factor: float = 1.0
    crop_scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Progression:
    """Phases in order; the last one lasts until training ends.

    Takes the place of a :class:`~mixsize.algorithms.Regime`: a loader asks it for the regime of each epoch.

    Args:
        base: the step whose budget ``size_px**2 * batch_size * duplicates`` each phase's batch is fitted to.
        phases: at least one.
        warmup_epochs: length of a linear rise of the learning rate after each transition, from a tenth of the phase's.
        rounding: how batches are fitted, see :meth:`~mixsize.algorithms.Regime.from_sizes`.
        batch_multiple: every fitted batch is a multiple of it.
        stride_px: every size is a multiple of it.

    Raises:
        ValueError: no phases, a number out of range, a size that is not a multiple of the stride.

    Example:
        >>> progression = Progression(Base(224, 256), (Phase(128, 30), Phase(224, 60, lr_factor=0.1)))
        >>> [regime.max_images for regime in progression.regimes], progression.at_epoch(30).mean_size_px
        ([784, 256], 224.0)
    """

    base: Base
    phases: tuple[Phase, ...]
    warmup_epochs: float = 0.0
    rounding: Rounding = "nearest"
    batch_multiple: int = 1
    stride_px: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("the progression has no phases; give at least one")
        if not is_number(self.warmup_epochs) or not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs!r}; it must be a number of at least 0")
        check_member("rounding", self.rounding, get_args(Rounding))
        check_count("batch_multiple", self.batch_multiple)
        for i, phase in enumerate(self.phases):
            _check_phase(f"phases[{i}]", phase)
        object.__setattr__(self, "phases", tuple(_plain(phase) for phase in self.phases))
        if self.starts[-1] >= MAX_EPOCHS:
            raise ValueError(f"the last phase starts at epoch {self.starts[-1]}; a run has at most {MAX_EPOCHS} epochs")
        check_stride((phase.size_px for phase in self.phases), self.stride_px)
        assert self.regimes  # Fitted here, for the errors of a phase whose batch does not fit.

    @classmethod
    def ramp(
        cls,
        base: Base,
        start_px: int,
        end_px: int,
        *,
        begin_epoch: int,
        end_epoch: int,
        step_px: int,
        rounding: Rounding = "nearest",
        batch_multiple: int = 1,
    ) -> Progression:
        """Grow in a line from ``start_px`` to ``end_px`` between two epochs, rounded to ``step_px``.

        Args:
            base: the step whose budget each batch is fitted to.
            start_px: image side up to ``begin_epoch``, in pixels.
            end_px: image side from ``end_epoch`` on, in pixels.
            begin_epoch: the last epoch at ``start_px``.
            end_epoch: the first epoch at ``end_px``, after ``begin_epoch``.
            step_px: sizes are rounded to multiples of it: the network's stride.
            rounding: see :class:`Progression`.
            batch_multiple: see :class:`Progression`.

        Raises:
            ValueError: epochs out of order or beyond a million, or sizes that are not multiples of ``step_px``.
        """
        for name, value in (("start_px", start_px), ("end_px", end_px), ("step_px", step_px)):
            check_count(name, value, MAX_SIZE_PX)
        for name, value in (("begin_epoch", begin_epoch), ("end_epoch", end_epoch)):
            check_count(name, value, MAX_EPOCHS, least=0)
        if not begin_epoch < end_epoch:
            raise ValueError(f"the ramp goes from epoch {begin_epoch} to {end_epoch}; it must end after it begins")
        check_stride((start_px, end_px), step_px)
        sizes = []
        for epoch in range(end_epoch + 1):
            done = max(0, epoch - begin_epoch) / (end_epoch - begin_epoch)
            sizes.append(round((start_px + (end_px - start_px) * done) / step_px) * step_px)
        phases = [Phase(size, epochs) for size, epochs in _runs(sizes)]
        return cls(base, tuple(phases), rounding=rounding, batch_multiple=batch_multiple, stride_px=step_px)

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """Each phase's regime."""
        return tuple(self._fit(phase) for phase in self.phases)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The epoch at which each phase starts."""
        return (0, *accumulate(phase.epochs for phase in self.phases))[:-1]

    @property
    def max_images(self) -> int:
        """Images in the largest step of any phase, duplicates counted, over all ranks."""
        return max(regime.max_images for regime in self.regimes)

    def phase_at(self, epoch: float) -> int:
        """Index of the phase that a position in epochs lies in."""
        return bisect_right(self.starts, epoch) - 1

    def at_epoch(self, epoch: int) -> Regime:
        """The regime of an epoch."""
        return self.regimes[self.phase_at(epoch)]

    def crop_scale_at(self, epoch: int) -> tuple[float, float] | None:
        """Areas of the random resized crops in an epoch, or None for the loader's own."""
        return self.phases[self.phase_at(epoch)].crop_scale

    def strength_at(self, name: str, epoch: int) -> float | None:
        """The value of a training setting in an epoch, or None where the phase leaves it as it is."""
        return None

    def lr_factor(self, position: float) -> float:
        """Factor of the learning rate at a position in epochs: the phase's, after its warm-up."""
        index = self.phase_at(position)
        factor = self.phases[index].lr_factor
        since = position - self.starts[index]
        if index == 0 or since >= self.warmup_epochs:
            return factor
        return factor * (0.1 + 0.9 * since / self.warmup_epochs)

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with anything that changes the draws."""
        drawn = asdict(self)
        del drawn["stride_px"]
        return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12]

    def _fit(self, phase: Phase) -> Regime:
        if phase.batch_size is not None:
            choice = Choice(phase.size_px, phase.batch_size, self.base.duplicates, 1.0)
            return Regime(self.base, (choice,), mode="fixed", stride_px=self.stride_px)
        return Regime.from_sizes(
            {phase.size_px: 1.0},
            self.base,
            "B+",
            rounding=self.rounding,
            batch_multiple=self.batch_multiple,
            stride_px=self.stride_px,
        )


def _check_phase(where: str, phase: Phase) -> None:
    check_count(f"{where}.size_px", phase.size_px, MAX_SIZE_PX)
    check_count(f"{where}.epochs", phase.epochs, MAX_EPOCHS)
    if phase.batch_size is not None:
        check_count(f"{where}.batch_size", phase.batch_size)
    if not is_number(phase.lr_factor) or not 0 < phase.lr_factor < math.inf:
        raise ValueError(f"{where}.lr_factor is {phase.lr_factor!r}; it must be a number above 0")
    scale = phase.crop_scale
    if scale is not None:
        pair = isinstance(scale, (tuple, list)) and len(scale) == 2 and all(map(is_number, scale))
        if not pair or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{where}.crop_scale is {scale!r}; it must be two rising fractions of (0, 1]")


def _plain(phase: Phase) -> Phase:
    """With Python's numbers in place of NumPy's, which cannot be written as JSON."""
    return Phase(
        int(phase.size_px),
        int(phase.epochs),
        None if phase.batch_size is None else int(phase.batch_size),
        float(phase.lr_factor),
        None if phase.crop_scale is None else (float(phase.crop_scale[0]), float(phase.crop_scale[1])),
    )


def _runs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Each value with the length of its run."""
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            yield values[start], i - start
            start = i
