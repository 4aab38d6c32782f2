"""Regimes that change during training: phases, a ramp of the size, or a shift from one distribution to another.

Source: fast.ai's progressive resizing; MixSize (ICLR 2021 submission), appendix E, compares it with drawing sizes
per step and per epoch. Multi-scale samplers with a curriculum: Nunez et al. 2023 (arXiv 2309.04502).
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
from mixsize.algorithms.regime.phases import (
    FittedMode,
    Phase,
    checked_phase,
    fit_phase,
    shifting_sizes,
    steps_of_a_line,
)
from mixsize.algorithms.regime.regime import Base, Draw, Regime, ShareOf
from mixsize.algorithms.regime.strengths import Ramp, as_ramps, ramp_at

#: The most stages of a shift.
MAX_STAGES = 1000


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
        phases = tuple(checked_phase(f"phases[{i}]", phase) for i, phase in enumerate(self.phases))
        object.__setattr__(self, "phases", phases)
        if self.starts[-1] >= MAX_EPOCHS:
            raise ValueError(f"the last phase starts at epoch {self.starts[-1]}; a run has at most {MAX_EPOCHS} epochs")
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

        def size(epoch: int) -> int:
            done = max(0, epoch - begin_epoch) / (end_epoch - begin_epoch)
            return round((start_px + (end_px - start_px) * done) / step_px) * step_px

        phases = [Phase(size_px, epochs) for size_px, epochs in steps_of_a_line(size, end_epoch + 1)]
        return cls(base, tuple(phases), rounding=rounding, batch_multiple=batch_multiple, stride_px=step_px)

    @classmethod
    def shift(
        cls,
        base: Base,
        start: str | Mapping[int, float],
        end: str | Mapping[int, float],
        mode: FittedMode = "B+",
        *,
        begin_epoch: int,
        end_epoch: int,
        stages: int = 20,
        share_of: ShareOf = "samples",
        draw: Draw = "step",
        rounding: Rounding = "nearest",
        batch_multiple: int = 1,
    ) -> Progression:
        """Shift in a line from one distribution of sizes to another between two epochs: from small sizes to large ones.

        Args:
            base: the step whose budget each batch is fitted to.
            start: the distribution up to ``begin_epoch``, see :meth:`~mixsize.algorithms.Regime.from_sizes`. Sizes that
                only one of the two has are drawn between them, too.
            end: the distribution from ``end_epoch`` on.
            mode: see :class:`Phase`.
            begin_epoch: the last epoch of ``start``.
            end_epoch: the first epoch of ``end``, after ``begin_epoch``.
            stages: the way is made in so many equal stages, or in one for each epoch where there are fewer epochs. The
                least share is a stage's part of a share; it must fill a batch.
            share_of: see :class:`Phase`.
            draw: see :class:`Phase`.
            rounding: see :class:`Progression`.
            batch_multiple: see :class:`Progression`.

        Raises:
            ValueError: epochs out of order or beyond a million, more than a thousand stages, or a distribution that is
                no regime.

        Example:
            >>> small, large = {128: 0.8, 160: 0.2}, {160: 0.4, 224: 0.6}
            >>> shift = Progression.shift(Base(224, 256), small, large, begin_epoch=0, end_epoch=80)
            >>> len(shift.phases), {c.size_px: round(c.share, 2) for c in shift.at_epoch(40).choices}
            (21, {224: 0.3, 160: 0.3, 128: 0.4})
        """
        for name, value in (("begin_epoch", begin_epoch), ("end_epoch", end_epoch)):
            check_count(name, value, MAX_EPOCHS, least=0)
        check_count("stages", stages, MAX_STAGES)
        if not begin_epoch < end_epoch:
            raise ValueError(f"the shift goes from epoch {begin_epoch} to {end_epoch}; it must end after it begins")

        def distribution(name: str, sizes: str | Mapping[int, float]) -> dict[int, float]:
            drawn = fit_phase(name, checked_phase(name, Phase(sizes, 1, mode=mode)), base, rounding, batch_multiple, 1)
            return dict(zip((choice.size_px for choice in drawn.choices), drawn.shares, strict=True))

        first, last = distribution("start", start), distribution("end", end)
        phases = [
            Phase(sizes, epochs, mode=mode, share_of=share_of, draw=draw)
            for sizes, epochs in shifting_sizes(first, last, begin_epoch, end_epoch, stages)
        ]
        return cls(base, tuple(phases), rounding=rounding, batch_multiple=batch_multiple)

    def until(self, epochs: int) -> Progression:
        """The same with a last phase that ends with a run of so many epochs, for strengths that change up to there."""
        last = replace(self.phases[-1], epochs=max(1, epochs - self.starts[-1]))
        return replace(self, phases=(*self.phases[:-1], last))

    def with_strengths(self, strengths: Mapping[str, float | Ramp]) -> Progression:
        """The same with strengths of training settings from the first epoch of the first phase to the last of the last.

        Args:
            strengths: as of a :class:`Phase`; those that a phase sets itself stay.

        Raises:
            ValueError: as for a phase.

        Example:
            >>> progression = Progression(Base(224, 256), (Phase(128, 6), Phase(224, 4, strengths={"mixup": 0.2})))
            >>> rising = progression.with_strengths({"magnitude": (0, 9), "mixup": 0.1})
            >>> [(rising.strength_at("magnitude", epoch), rising.strength_at("mixup", epoch)) for epoch in (0, 5, 9)]
            [(0.0, 0.1), (5.0, 0.1), (9.0, 0.2)]
        """
        ramps = as_ramps("strengths", strengths)
        epochs = self.starts[-1] + self.phases[-1].epochs
        phases = []
        for phase, start in zip(self.phases, self.starts, strict=True):
            last = start + phase.epochs - 1
            own = {name: (ramp_at(ramp, start, epochs), ramp_at(ramp, last, epochs)) for name, ramp in ramps.items()}
            phases.append(replace(phase, strengths={**own, **phase.strengths}))
        return replace(self, phases=tuple(phases))

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """Each phase's regime."""
        fitting = (self.base, self.rounding, self.batch_multiple, self.stride_px)
        return tuple(fit_phase(f"phases[{i}]", phase, *fitting) for i, phase in enumerate(self.phases))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The epoch at which each phase starts."""
        return (0, *accumulate(phase.epochs for phase in self.phases))[:-1]

    @cached_property
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
        index = self.phase_at(epoch)
        phase = self.phases[index]
        if name not in phase.strengths:
            return None
        ramp = phase.strengths[name]
        assert isinstance(ramp, tuple)
        return ramp_at(ramp, epoch - self.starts[index], phase.epochs)

    @property
    def strengths(self) -> tuple[str, ...]:
        """The training settings that some phase sets, in order of their names."""
        return tuple(sorted({name for phase in self.phases for name in phase.strengths}))

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
