"""The phases of a progression: consecutive epochs that draw from one regime."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

from mixsize.algorithms.regime.checks import (
    MAX_EPOCHS,
    MAX_SIZE_PX,
    check_count,
    check_member,
    check_share,
    is_number,
)
from mixsize.algorithms.regime.fitting import Rounding
from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS, Base, Choice, Draw, Regime, ShareOf
from mixsize.algorithms.regime.strengths import Ramp, as_ramps

FittedMode = Literal["B+", "D+"]


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs at one image size, or at sizes drawn from one distribution.

    Args:
        size_px: image side S in pixels; of a mixture a mapping of side to share, or the name of a distribution, as
            :meth:`~mixsize.algorithms.Regime.from_sizes` takes them.
        epochs: how many epochs, at least 1.
        batch_size: distinct images B in a step, over all ranks; None fits it to the base's budget, as ``mode`` says.
            Only for one size.
        lr_factor: factor of the learning rate that other algorithms or schedulers set.
        crop_scale: least and greatest area of a random resized crop in this phase; None keeps the loader's.
        mode: what fills the base's budget, see :meth:`~mixsize.algorithms.Regime.from_sizes`.
        share_of: the whole of a mixture's shares, see :class:`~mixsize.algorithms.Regime`.
        draw: how often a mixture's size is drawn, see :class:`~mixsize.algorithms.Regime`.
        strengths: training setting -> its value in this phase, or its values in the first and the last epoch, with a
            line between them. A phase of one epoch has the first value. The settings are ``magnitude``, ``mixup``,
            ``cutmix``, ``dropout``, ``drop_path`` and ``label_smoothing``; others stay as they are.

    Example:
        >>> phase = Phase(size_px=128, epochs=30, lr_factor=0.5, crop_scale=(0.35, 1.0))
        >>> mixed = Phase({160: 0.4, 128: 0.6}, epochs=30, mode="D+", strengths={"mixup": 0.2, "dropout": (0.1, 0.3)})
    """

    size_px: int | str | Mapping[int, float] = field(hash=False)
    epochs: int
    batch_size: int | None = None
    lr_factor: float = 1.0
    crop_scale: tuple[float, float] | None = None
    mode: FittedMode = "B+"
    share_of: ShareOf = "samples"
    draw: Draw = "step"
    strengths: Mapping[str, float | Ramp] = field(default_factory=dict, hash=False)

    @property
    def sizes_in_words(self) -> str:
        """``128 px``, or the sides of a mixture: ``160 px and 128 px``; a named one by its name."""
        if isinstance(self.size_px, str):
            return self.size_px
        sizes = self.size_px if isinstance(self.size_px, Mapping) else (self.size_px,)
        return " and ".join(f"{size} px" for size in sizes)


def checked_phase(where: str, phase: Phase) -> Phase:
    """A phase with Python's numbers in place of NumPy's, which cannot be written as JSON; ``where`` names it.

    Raises:
        ValueError: names the argument, its value and the range; not whether a mixture's shares sum to 1.
    """
    size_px = _plain_sizes(f"{where}.size_px", phase.size_px)
    check_count(f"{where}.epochs", phase.epochs, MAX_EPOCHS)
    if phase.batch_size is not None:
        check_count(f"{where}.batch_size", phase.batch_size)
        if not isinstance(size_px, int):
            raise ValueError(
                f"{where}.batch_size is {phase.batch_size}; several sizes have batches fitted to the base's budget"
            )
    if not is_number(phase.lr_factor) or not 0 < phase.lr_factor < math.inf:
        raise ValueError(f"{where}.lr_factor is {phase.lr_factor!r}; it must be a number above 0")
    scale = phase.crop_scale
    if scale is not None:
        pair = isinstance(scale, (tuple, list)) and len(scale) == 2 and all(map(is_number, scale))
        if not pair or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{where}.crop_scale is {scale!r}; it must be two rising fractions of (0, 1]")
    return Phase(
        size_px,
        int(phase.epochs),
        None if phase.batch_size is None else int(phase.batch_size),
        float(phase.lr_factor),
        None if scale is None else (float(scale[0]), float(scale[1])),
        phase.mode,
        phase.share_of,
        phase.draw,
        as_ramps(f"{where}.strengths", phase.strengths),
    )


def _plain_sizes(where: str, size_px: int | str | Mapping[int, float]) -> int | str | dict[int, float]:
    if isinstance(size_px, str):
        check_member(where, size_px, SIZE_DISTRIBUTIONS)
        return size_px
    if not isinstance(size_px, Mapping):
        check_count(where, size_px, MAX_SIZE_PX)
        return int(size_px)
    for size, share in size_px.items():
        check_count(f"a size in {where}", size, MAX_SIZE_PX)
        check_share(f"the share of {size} px in {where}", share)
    return {int(size): float(share) for size, share in sorted(size_px.items(), reverse=True)}


def fit_phase(where: str, phase: Phase, base: Base, rounding: Rounding, batch_multiple: int, stride_px: int) -> Regime:
    """The regime that a phase draws from; ``where`` names the phase.

    Raises:
        ValueError: see :meth:`~mixsize.algorithms.Regime.from_sizes`.
    """
    try:
        if phase.batch_size is not None:
            assert isinstance(phase.size_px, int)
            choice = Choice(phase.size_px, phase.batch_size, base.duplicates, 1.0)
            return Regime(base, (choice,), mode="fixed", stride_px=stride_px)
        return Regime.from_sizes(
            {phase.size_px: 1.0} if isinstance(phase.size_px, int) else phase.size_px,
            base,
            phase.mode,
            share_of=phase.share_of,
            rounding=rounding,
            draw=phase.draw,
            batch_multiple=batch_multiple,
            stride_px=stride_px,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def whole_epochs(fractions: Sequence[float], epochs: int, pixels: Sequence[float] | None = None) -> list[int]:
    """Split a run into phases of whole epochs: each ends at the whole epoch that is nearest to its exact end.

    Fractions of a run's pixels make stages of equal compute: EfficientTrain++ (arXiv 2405.08768) gives each of its ten
    stages a tenth of the pixels, so that stages of smaller images have more epochs. It counts a run in epochs of
    full-size images. Here a run is counted in its own epochs, as learning rates, evaluations and checkpoints are: the
    200 epochs of its code for ResNet-50 are 455 epochs of these, with the same pixels.

    Args:
        fractions: one for each phase, which sum to 1 or nearly so.
        epochs: length of the run.
        pixels: of an epoch of each phase, in any unit: the fractions are of the run's pixels. None: of its epochs.

    Returns:
        Epochs of each phase, 0 for a phase that is too short for one; they sum to ``epochs``.

    Example:
        >>> whole_epochs([0.5, 0.5], epochs=50, pixels=[112**2, 224**2])
        [40, 10]
    """
    weights = fractions if pixels is None else [part / cost for part, cost in zip(fractions, pixels, strict=True)]
    total = math.fsum(weights)
    ends = [round(end / total * epochs) for end in accumulate(weights)]
    return [end - start for start, end in pairwise([0, *ends])]


def steps_of_a_line(value: Callable[[int], int], epochs: int) -> Iterator[tuple[int, int]]:
    """Each value of a rounded line over ``epochs``, with the number of epochs that it lasts.

    Args:
        value: epoch -> value; it only rises, or only falls.
        epochs: how many. Their number costs little, that of the values counts.
    """
    start = 0
    while start < epochs:
        now = value(start)
        end = bisect_left(range(epochs), True, lo=start, key=lambda epoch: value(epoch) != now)
        yield now, end - start
        start = end


def shifting_sizes(
    start: Mapping[int, float], end: Mapping[int, float], begin_epoch: int, end_epoch: int, stages: int
) -> Iterator[tuple[dict[int, float], int]]:
    """Distributions on the way from one to another, each with the number of epochs that it lasts.

    Args:
        start: side in pixels -> share, up to ``begin_epoch``.
        end: from ``end_epoch`` on.
        begin_epoch: the last epoch of ``start``.
        end_epoch: the first epoch of ``end``, after ``begin_epoch``.
        stages: the way is made in so many equal stages, or in one for each epoch.
    """

    def stage(epoch: int) -> int:
        return round(max(0, epoch - begin_epoch) / (end_epoch - begin_epoch) * stages)

    for index, epochs in steps_of_a_line(stage, end_epoch + 1):
        done = index / stages
        shares = {size: (1 - done) * start.get(size, 0.0) + done * end.get(size, 0.0) for size in {*start, *end}}
        yield {size: share for size, share in sorted(shares.items(), reverse=True) if share}, epochs
