"""What may be drawn: image sizes, batch sizes and duplicates at a fixed budget.

A regime says which (size, batch, duplicates) triples a step may take and how often.
:mod:`mixsize.algorithms.regime.plan` draws the triple of each step of an epoch.

Source: MixSize (ICLR 2021 submission), section 3 and equation 1; Hoffer et al. 2020 for duplicates
(batch augmentation).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from mixsize.algorithms.regime.checks import (
    MAX_SAMPLES,
    MAX_SIZE_PX,
    MAX_STEP_PIXELS,
    check_count,
    check_member,
    check_share,
    check_stride,
)
from mixsize.algorithms.regime.fitting import Rounding, allocate_samples, allocate_steps, fit_batch, fit_duplicates

Mode = Literal["fixed", "B+", "D+", "table"]
ShareOf = Literal["samples", "steps"]
Draw = Literal["step", "epoch"]

#: Named distributions: side in pixels -> share. S(28), S(144) and S(208) are the paper's. S(224) is from its released
#: code, for its best ResNet-50.
SIZE_DISTRIBUTIONS: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "s28": MappingProxyType({40: 0.2, 32: 0.3, 24: 0.3, 16: 0.2}),
        "s144": MappingProxyType({256: 0.1, 224: 0.1, 128: 0.6, 96: 0.2}),
        "s208": MappingProxyType({320: 0.1, 288: 0.1, 256: 0.1, 224: 0.2, 192: 0.2, 160: 0.1, 128: 0.1, 96: 0.1}),
        "s224": MappingProxyType({224: 0.2, **dict.fromkeys((320, 288, 256, 192, 160, 128), 0.8 / 6)}),
    }
)

#: Shares may miss a sum of 1 by this much.
SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Base:
    """The fixed-size step that sets the budget ``size_px**2 * batch_size * duplicates``.

    Args:
        size_px: image side S0 in pixels.
        batch_size: distinct images B0 in a step, over all ranks.
        duplicates: augmented copies D0 of each image.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> Base(size_px=224, batch_size=256).pixels
        12845056
    """

    size_px: int
    batch_size: int
    duplicates: int = 1

    def __post_init__(self) -> None:
        _check_triple("base", self)
        for name in ("size_px", "batch_size", "duplicates"):
            # NumPy's integers overflow and cannot be written as JSON.
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def pixels(self) -> int:
        """Pixels of a step, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates


@dataclass(frozen=True)
class Choice:
    """One triple that a step may take, and its share.

    Args:
        size_px: image side S in pixels.
        batch_size: distinct images B in a step, over all ranks.
        duplicates: augmented copies D of each image.
        share: fraction in (0, 1] of the samples or of the steps, see :attr:`Regime.share_of`.

    Example:
        >>> large, small = Choice(224, 256, 1, 0.4), Choice(128, 256, 3, 0.6)
        >>> Regime.from_choices(Base(224, 256), [large, small]).mean_size_px
        166.4
    """

    size_px: int
    batch_size: int
    duplicates: int
    share: float

    @property
    def pixels(self) -> int:
        """Pixels of a step, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates


@dataclass(frozen=True)
class Regime:
    """The triples that may be drawn, with their means and costs.

    Build one with :meth:`fixed`, :meth:`from_sizes` or :meth:`from_choices`.

    Args:
        base: the fixed-size step that sets the budget.
        choices: the triples; their shares sum to 1.
        mode: origin of the choices: ``fixed``, ``B+`` (larger batches at small sizes), ``D+`` (more duplicates at
            small sizes) or ``table`` (given one by one).
        share_of: whole of the shares. ``samples``: an epoch's images (reproduces the paper's Table 1). ``steps``:
            an epoch's steps (the paper's equation 1).
        draw: ``step`` draws anew at each step, ``epoch`` once per epoch.
        stride_px: every size is a multiple of it.

    Raises:
        ValueError: an empty table, a size listed twice, a size that is not a multiple of ``stride_px``, a number out of
            range, shares that do not sum to 1.

    Example:
        >>> regime = Regime.from_sizes("s144", Base(size_px=224, batch_size=256), "D+")
        >>> regime.mean_size_px, regime.mean_duplicates, round(regime.pixels_per_step_ratio, 3)
        (144.0, 3.0, 1.002)
    """

    base: Base
    choices: tuple[Choice, ...]
    mode: Mode = "table"
    share_of: ShareOf = "samples"
    draw: Draw = "step"
    stride_px: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_member("mode", self.mode, get_args(Mode))
        check_member("share_of", self.share_of, get_args(ShareOf))
        check_member("draw", self.draw, get_args(Draw))
        if not self.choices:
            raise ValueError("the regime has no choices; give at least one size")
        for i, choice in enumerate(self.choices):
            _check_triple(f"choices[{i}]", choice)
            check_share(f"choices[{i}].share", choice.share)
        plain = [Choice(int(c.size_px), int(c.batch_size), int(c.duplicates), float(c.share)) for c in self.choices]
        object.__setattr__(self, "choices", tuple(plain))
        if self.max_step_pixels > MAX_STEP_PIXELS:
            raise ValueError(
                f"choices has a step of {self.max_step_pixels} pixels; a step has at most {MAX_STEP_PIXELS}"
            )
        sizes = [choice.size_px for choice in self.choices]
        for size in sizes:
            if sizes.count(size) > 1:
                raise ValueError(f"size {size} px is listed {sizes.count(size)} times; give each size one share")
        check_stride(sizes, self.stride_px)
        total = math.fsum(choice.share for choice in self.choices)
        if abs(total - 1) > SHARE_TOLERANCE:
            raise ValueError(f"the shares sum to {total:.6g}; they must sum to 1")

    @classmethod
    def fixed(cls, base: Base, *, stride_px: int = 1) -> Regime:
        """The base at every step: ordinary training at one size."""
        choice = Choice(base.size_px, base.batch_size, base.duplicates, 1.0)
        return cls(base, (choice,), mode="fixed", stride_px=stride_px)

    @classmethod
    def from_choices(
        cls,
        base: Base,
        choices: Iterable[Choice],
        *,
        share_of: ShareOf = "samples",
        draw: Draw = "step",
        stride_px: int = 1,
    ) -> Regime:
        """An explicit table, at any cost."""
        return cls(base, tuple(choices), "table", share_of, draw, stride_px)

    @classmethod
    def from_sizes(
        cls,
        sizes: str | Mapping[int, float],
        base: Base,
        mode: Literal["B+", "D+"],
        *,
        share_of: ShareOf = "samples",
        rounding: Rounding = "nearest",
        draw: Draw = "step",
        batch_multiple: int = 1,
        stride_px: int = 1,
    ) -> Regime:
        """Fit a batch size (B+) or a number of duplicates (D+) to each size of a distribution.

        Args:
            sizes: a name of :data:`SIZE_DISTRIBUTIONS`, or a mapping of side in pixels to share.
            base: the step that sets the budget.
            mode: ``B+`` keeps D at the base's and scales B; ``D+`` keeps B at the base's and scales D.
            share_of: see :class:`Regime`.
            rounding: ``nearest`` rounds B or D to the nearest whole number, ``pow2`` rounds the multiplier
                ``(S0 / S)**2`` up to a power of two, at least 1 (the paper's Table 1), ``budget`` never exceeds the
                base's pixels and keeps B a multiple of 8.
            draw: see :class:`Regime`.
            batch_multiple: every B is a multiple of it. Fitted batches are rounded to one; the base's must be one with
                ``pow2``, which multiplies it, and ``D+``, which keeps it. Give a multiple of the number of ranks.
            stride_px: see :class:`Regime`.

        Raises:
            ValueError: an unknown name, a size or share out of range, a batch that rounds to 0 or is not a multiple.
        """
        check_member("mode", mode, ("B+", "D+"))
        check_member("rounding", rounding, get_args(Rounding))
        check_count("batch_multiple", batch_multiple)
        if isinstance(sizes, str):
            check_member("sizes", sizes, SIZE_DISTRIBUTIONS)
            sizes = SIZE_DISTRIBUTIONS[sizes]
        if not isinstance(sizes, Mapping):
            raise ValueError(f"sizes is {sizes!r}; it must be a name or a mapping of side in pixels to share")
        for size, share in sizes.items():
            check_count("a size in px", size, MAX_SIZE_PX)
            check_share(f"the share of size {size} px", share)
        fit = fit_batch if mode == "B+" else fit_duplicates
        choices = []
        for size, share in sorted(sizes.items(), reverse=True):
            batch, duplicates = fit(int(size), base, rounding, int(batch_multiple))
            if batch % batch_multiple:
                raise ValueError(
                    f"base.batch_size is {base.batch_size}, and with {mode} and rounding {rounding} the batch at "
                    f"{size} px is {batch}, not a multiple of batch_multiple {batch_multiple}; use a base batch that is"
                )
            choices.append(Choice(int(size), batch, duplicates, float(share)))
        return cls(base, tuple(choices), mode, share_of, draw, stride_px)

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Itself alone; a :class:`~mixsize.algorithms.Progression` has one for each phase."""
        return (self,)

    def at_epoch(self, epoch: int) -> Regime:
        """Itself: the same in each epoch."""
        return self

    def crop_scale_at(self, epoch: int) -> tuple[float, float] | None:
        """None: a regime leaves crops to the loader."""
        return None

    def strength_at(self, name: str, epoch: int) -> float | None:
        """None: a regime leaves the strength of the training's settings as they are; see :class:`Progression`."""
        return None

    @property
    def max_images(self) -> int:
        """Images in the largest step, duplicates counted, over all ranks."""
        return max(choice.batch_size * choice.duplicates for choice in self.choices)

    @property
    def max_step_pixels(self) -> int:
        """Pixels of the largest step, over all ranks."""
        return max(choice.pixels for choice in self.choices)

    @property
    def mean_size_px(self) -> float:
        """Mean side in pixels, weighted by share: the 144 of S(144)."""
        return math.fsum(choice.share * choice.size_px for choice in self.choices)

    @property
    def mean_duplicates(self) -> float:
        """Mean number of duplicates, weighted by share."""
        return math.fsum(choice.share * choice.duplicates for choice in self.choices)

    @property
    def mean_batch_size(self) -> float:
        """Distinct images per step, averaged over the steps of an endless epoch."""
        if self.share_of == "steps":
            return math.fsum(choice.share * choice.batch_size for choice in self.choices)
        return 1 / math.fsum(choice.share / choice.batch_size for choice in self.choices)

    @property
    def lr_scale(self) -> float:
        """Factor of the linear learning-rate rule: the batch of the mean step over the base's batch."""
        return self.mean_batch_size / self.base.batch_size

    @property
    def lr_scale_by_sample(self) -> float:
        """The same with the batch that the mean image is trained in, which is never smaller."""
        of_samples = zip(self.sample_shares, self.choices, strict=True)
        return math.fsum(share * choice.batch_size for share, choice in of_samples) / self.base.batch_size

    @property
    def pixels_per_step_ratio(self) -> float:
        """Mean cost of a step in pixels relative to the base's step."""
        per_step = [share * choice.pixels for share, choice in zip(self.step_shares, self.choices, strict=True)]
        return math.fsum(per_step) / self.base.pixels

    @property
    def pixels_per_epoch_ratio(self) -> float:
        """Cost of an epoch in pixels relative to the base's epoch, for any number of images."""
        return self.pixels_per_step_ratio * self.base.batch_size / self.mean_batch_size

    @property
    def step_shares(self) -> tuple[float, ...]:
        """Each choice's fraction of the steps; they sum to 1."""
        if self.share_of == "steps":
            return self.shares
        weights = [choice.share / choice.batch_size for choice in self.choices]
        return tuple(weight / math.fsum(weights) for weight in weights)

    @property
    def sample_shares(self) -> tuple[float, ...]:
        """Each choice's fraction of an epoch's samples; they sum to 1."""
        if self.share_of == "samples":
            return self.shares
        weights = [choice.share * choice.batch_size for choice in self.choices]
        return tuple(weight / math.fsum(weights) for weight in weights)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each choice's share, normalised: an error in their sum would add up over many steps."""
        total = math.fsum(choice.share for choice in self.choices)
        return tuple(choice.share / total for choice in self.choices)

    def step_counts(self, num_samples: int) -> tuple[int, ...]:
        """Steps of each choice in an epoch with ``draw="step"``; the same in every epoch.

        Whole batches only. With shares of samples, each size takes its share, rounded to the nearest number of batches.
        All sizes together leave out less than one batch of each size.

        Args:
            num_samples: images in the data set.

        Raises:
            ValueError: too few images for one batch of every size.
        """
        check_count("num_samples", num_samples, MAX_SAMPLES)
        batches = np.array([choice.batch_size for choice in self.choices], dtype=np.int64)
        shares = np.array(self.shares)
        allocate = allocate_samples if self.share_of == "samples" else allocate_steps
        counts = allocate(shares, batches, num_samples)
        for choice, count in zip(self.choices, counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"{num_samples} images are too few: a share of {choice.share:g} of the {self.share_of} leaves no "
                    f"whole batch of {choice.batch_size} images at {choice.size_px} px; use a smaller base batch or "
                    "more images"
                )
        assert int(counts @ batches) <= num_samples
        return tuple(int(count) for count in counts)

    def steps_per_epoch(self, num_samples: int) -> float:
        """Steps of an epoch: exact with ``draw="step"``, the mean over epochs with ``draw="epoch"``."""
        if self.draw == "step":
            return sum(self.step_counts(num_samples))
        return math.fsum(
            share * self.epoch_steps(choice, num_samples)
            for share, choice in zip(self.sample_shares, self.choices, strict=True)
        )

    def epoch_steps(self, choice: Choice, num_samples: int) -> int:
        """Steps of an epoch spent wholly on ``choice``.

        Raises:
            ValueError: fewer images than one batch.
        """
        steps = num_samples // choice.batch_size
        if steps == 0:
            raise ValueError(
                f"{num_samples} images are fewer than one batch of {choice.batch_size} at {choice.size_px} px; "
                "use a smaller base batch or more images"
            )
        return steps

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with anything that changes the draws."""
        drawn = asdict(self)
        del drawn["stride_px"], drawn["mode"]
        return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12]


def _check_triple(where: str, triple: Base | Choice) -> None:
    check_count(f"{where}.size_px", triple.size_px, MAX_SIZE_PX)
    check_count(f"{where}.batch_size", triple.batch_size)
    check_count(f"{where}.duplicates", triple.duplicates)
