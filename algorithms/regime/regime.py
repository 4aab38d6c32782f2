"""What may be drawn: image sizes, batch sizes and duplicates at a fixed budget.

A regime is arithmetic only. It says which (size, batch, duplicates) triples a step may take and
how often; :mod:`mixsize.algorithms.regime.plan` says which triple each step of an epoch does take.

Source: MixSize (ICLR 2021 submission), section 3 and equation 1; Hoffer et al. 2020 for duplicates
(batch augmentation).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

Mode = Literal["fixed", "B+", "D+", "table"]
ShareOf = Literal["samples", "steps"]
Rounding = Literal["nearest", "pow2", "budget"]
Draw = Literal["step", "epoch"]

#: Named distributions: side in pixels -> share. S(28), S(144) and S(208) are the paper's;
#: S(224) is the one its released code trains its best ResNet-50 with.
SIZE_DISTRIBUTIONS: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "s28": MappingProxyType({40: 0.2, 32: 0.3, 24: 0.3, 16: 0.2}),
        "s144": MappingProxyType({256: 0.1, 224: 0.1, 128: 0.6, 96: 0.2}),
        "s208": MappingProxyType({320: 0.1, 288: 0.1, 256: 0.1, 224: 0.2, 192: 0.2, 160: 0.1, 128: 0.1, 96: 0.1}),
        "s224": MappingProxyType({224: 0.2, **dict.fromkeys((320, 288, 256, 192, 160, 128), 0.8 / 6)}),
    }
)

#: ``budget`` rounding keeps batches a multiple of this: tensor cores idle on ragged ones.
BUDGET_BATCH_MULTIPLE = 8
#: Shares may miss a sum of 1 by this much.
SHARE_TOLERANCE = 1e-6
#: The largest side in pixels: that of a JPEG.
MAX_SIZE_PX = 65_535
#: The largest batch and the most duplicates: plans keep them in 32 bits.
MAX_COUNT = 2**31 - 1
#: Pixels of a step, over all ranks, whose bytes can be counted in 64 bits.
MAX_STEP_PIXELS = 2**61
#: Images of a data set that floats can count one by one.
MAX_SAMPLES = 2**53


def check_count(where: str, value: int, most: int = MAX_COUNT, least: int = 1) -> None:
    """Refuse what is no whole number of ``least`` to ``most``.

    Raises:
        ValueError: names ``where``, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{where} is {value!r}; it must be a whole number from {least} to {most}")


def check_member(where: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse what is not one of the words allowed.

    Raises:
        ValueError: names ``where``, the value and the words.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(allowed)}")


def is_number(value: object) -> bool:
    """Whether a value is a real number; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_share(where: str, value: float) -> None:
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{where} is {value!r}; it must lie in (0, 1]")


#: What the triple of a step consists of.
_COUNTS = ("size_px", "batch_size", "duplicates")


def _most(name: str) -> int:
    return MAX_SIZE_PX if name == "size_px" else MAX_COUNT


@dataclass(frozen=True)
class Base:
    """The fixed-size step that sets the budget ``size_px**2 * batch_size * duplicates``.

    Args:
        size_px: image side S0 in pixels.
        batch_size: distinct images B0 in a step, over all ranks.
        duplicates: augmented copies D0 of each image.
    """

    size_px: int
    batch_size: int
    duplicates: int = 1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_count(f"base.{name}", getattr(self, name), _most(name))
            # numpy's integers are accepted, but overflow and are no JSON.
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def pixels(self) -> int:
        """Pixels a step costs, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates


@dataclass(frozen=True)
class Choice:
    """One triple a step may take, and its share.

    Args:
        size_px: image side S in pixels.
        batch_size: distinct images B in a step, over all ranks.
        duplicates: augmented copies D of each image.
        share: fraction (0 to 1] of the samples or of the steps, see :attr:`Regime.share_of`.
    """

    size_px: int
    batch_size: int
    duplicates: int
    share: float

    @property
    def pixels(self) -> int:
        """Pixels a step costs, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates


@dataclass(frozen=True)
class Regime:
    """The triples that may be drawn, with what follows from them.

    Build one with :meth:`fixed`, :meth:`from_sizes` or :meth:`from_choices`.

    Args:
        base: the fixed-size step that the budget comes from.
        choices: the triples with their shares, which sum to 1.
        mode: how the choices came about: ``fixed``, ``B+`` (larger batches at small sizes), ``D+``
            (more duplicates at small sizes) or ``table`` (given one by one).
        share_of: what a share is a fraction of. ``samples``: of an epoch's images (reproduces the paper's
            Table 1). ``steps``: of the steps (the paper's equation 1).
        draw: ``step`` draws anew at each step, ``epoch`` once an epoch.
        stride_px: every size is a multiple of it.

    Raises:
        ValueError: an empty table, a size listed twice, a size that is no multiple of ``stride_px``,
            a count below 1 or above what plans can hold, a share outside (0, 1], shares that do not sum to 1.
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
            for name in _COUNTS:
                check_count(f"choices[{i}].{name}", getattr(choice, name), _most(name))
            _check_share(f"choices[{i}].share", choice.share)
        plain = (Choice(*(int(getattr(c, name)) for name in _COUNTS), float(c.share)) for c in self.choices)
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
        """The base at every step: what most people train with."""
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
        """An explicit table, whatever its cost."""
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
            batch_multiple: every B is a multiple of it: fitted ones are rounded to one, and the base's, which ``pow2``
                multiplies and ``D+`` keeps, must be one. Give the number of ranks, or a multiple of it.
            stride_px: see :class:`Regime`.

        Raises:
            ValueError: an unknown name, a size or share out of range, a batch that rounds to 0 or is no multiple.
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
            _check_share(f"the share of size {size} px", share)
        fit = _fit_batch if mode == "B+" else _fit_duplicates
        choices = []
        for size, share in sorted(sizes.items(), reverse=True):
            batch, duplicates = fit(int(size), base, rounding, int(batch_multiple))
            if batch % batch_multiple:
                raise ValueError(
                    f"base.batch_size is {base.batch_size}, and with {mode} and rounding {rounding} the batch at "
                    f"{size} px is {batch}, no multiple of batch_multiple {batch_multiple}; give a base batch that is"
                )
            choices.append(Choice(int(size), batch, duplicates, float(share)))
        return cls(base, tuple(choices), mode, share_of, draw, stride_px)

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Itself alone: a :class:`~mixsize.algorithms.Progression` has one for each phase."""
        return (self,)

    def at_epoch(self, epoch: int) -> Regime:
        """What may be drawn in an epoch: the same in each."""
        return self

    def crop_scale_at(self, epoch: int) -> tuple[float, float] | None:
        """None: a regime leaves crops to the loader."""
        return None

    @property
    def max_images(self) -> int:
        """Images in the largest step, duplicates counted, over all ranks."""
        return max(choice.batch_size * choice.duplicates for choice in self.choices)

    @property
    def max_step_pixels(self) -> int:
        """Pixels of the costliest step, over all ranks: what buffers must hold."""
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
        """Distinct images per step, averaged over the steps of an epoch of endless length."""
        if self.share_of == "steps":
            return math.fsum(choice.share * choice.batch_size for choice in self.choices)
        return 1 / math.fsum(choice.share / choice.batch_size for choice in self.choices)

    @property
    def lr_scale(self) -> float:
        """Factor of the linear learning-rate rule: mean batch over the base's batch."""
        return self.mean_batch_size / self.base.batch_size

    @property
    def pixels_per_step_ratio(self) -> float:
        """Mean cost of a step in pixels relative to the base's step."""
        per_step = [share * choice.pixels for share, choice in zip(self.step_shares, self.choices, strict=True)]
        return math.fsum(per_step) / self.base.pixels

    @property
    def pixels_per_epoch_ratio(self) -> float:
        """Cost of an epoch in pixels relative to the base's epoch, whatever the number of images."""
        return self.pixels_per_step_ratio * self.base.batch_size / self.mean_batch_size

    @property
    def step_shares(self) -> tuple[float, ...]:
        """Each choice's fraction of the steps; they sum to 1."""
        if self.share_of == "steps":
            return self._shares
        weights = [choice.share / choice.batch_size for choice in self.choices]
        return tuple(weight / math.fsum(weights) for weight in weights)

    @property
    def sample_shares(self) -> tuple[float, ...]:
        """Each choice's fraction of an epoch's samples; they sum to 1."""
        if self.share_of == "samples":
            return self._shares
        weights = [choice.share * choice.batch_size for choice in self.choices]
        return tuple(weight / math.fsum(weights) for weight in weights)

    @property
    def _shares(self) -> tuple[float, ...]:
        """The shares without what they may miss a sum of 1 by, which adds up over many steps."""
        total = math.fsum(choice.share for choice in self.choices)
        return tuple(choice.share / total for choice in self.choices)

    def step_counts(self, num_samples: int) -> tuple[int, ...]:
        """Steps that each choice takes in an epoch with ``draw="step"``; the same in every epoch.

        Whole batches only. With shares of samples, each size leaves out less than one of its batches;
        with shares of steps, all sizes together leave out less than one batch of each size.

        Args:
            num_samples: images in the data set.

        Raises:
            ValueError: too few images for one batch of every size.
        """
        check_count("num_samples", num_samples, MAX_SAMPLES)
        batches = np.array([choice.batch_size for choice in self.choices], dtype=np.int64)
        shares = np.array(self._shares)
        if self.share_of == "samples":
            # The nudge keeps 0.2 * 50_000 at 10_000 where binary fractions make it 9_999.999...
            counts = np.floor(shares * num_samples / batches + 1e-9).astype(np.int64)
        else:
            counts = _allocate_steps(shares, batches, num_samples)
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
        """Twelve hexadecimal digits that change whenever something that is drawn would."""
        drawn = asdict(self)
        del drawn["stride_px"], drawn["mode"]
        return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12]


def check_stride(sizes: Iterable[int], stride_px: int, network: str = "the network") -> None:
    """Refuse sizes that a network of this total stride would have to pad or cut.

    Raises:
        ValueError: a size that is no multiple of ``stride_px``; the message names the nearest ones that are. A stride
            that is no whole number of at least 1.
    """
    check_count("stride", stride_px)
    for size in sizes:
        if size % stride_px:
            below = size // stride_px * stride_px
            near = f"{below} and {below + stride_px}" if below else f"{stride_px}"
            raise ValueError(
                f"size {size} px is not a multiple of the stride {stride_px} of {network} (nearest: {near} px); "
                "change the size, or set regime.stride to accept it"
            )


def _round_half_up(x: float) -> int:
    return math.floor(x + 0.5)


def _pow2_multiplier(size_px: int, base: Base) -> int:
    multiplier = 1
    while multiplier * size_px**2 < base.size_px**2:
        multiplier *= 2
    return multiplier


def _refuse_empty(size_px: int, exact: float, multiple: int) -> ValueError:
    unit = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
    return ValueError(
        f"the batch at {size_px} px rounds to 0: the budget allows {exact:.3g} images and the batch must be {unit}; "
        "use a larger base batch or a smaller size"
    )


def _fit_batch(size_px: int, base: Base, rounding: Rounding, multiple: int) -> tuple[int, int]:
    exact = base.batch_size * (base.size_px / size_px) ** 2
    if rounding == "pow2":
        batch = base.batch_size * _pow2_multiplier(size_px, base)
    elif rounding == "nearest":
        batch = _round_half_up(exact / multiple) * multiple
    else:
        multiple = math.lcm(multiple, BUDGET_BATCH_MULTIPLE)
        batch = base.pixels // (size_px**2 * base.duplicates) // multiple * multiple
    if batch == 0:
        raise _refuse_empty(size_px, exact, multiple)
    return batch, base.duplicates


def _fit_duplicates(size_px: int, base: Base, rounding: Rounding, multiple: int) -> tuple[int, int]:
    exact = base.duplicates * (base.size_px / size_px) ** 2
    if rounding == "pow2":
        return base.batch_size, base.duplicates * _pow2_multiplier(size_px, base)
    if rounding == "nearest":
        duplicates = _round_half_up(exact)
        if duplicates:
            return base.batch_size, duplicates
        # Not even half a duplicate fits: the batch shrinks instead, as in the paper's released code.
        batch = _round_half_up(base.batch_size * exact / multiple) * multiple
        if batch == 0:
            raise _refuse_empty(size_px, base.batch_size * exact, multiple)
        return batch, 1
    duplicates = max(1, base.pixels // (size_px**2 * base.batch_size))
    multiple = math.lcm(multiple, BUDGET_BATCH_MULTIPLE)
    affordable = min(base.batch_size, base.pixels // (size_px**2 * duplicates))
    batch = affordable // multiple * multiple
    if batch == 0:
        raise _refuse_empty(size_px, affordable, multiple)
    return batch, duplicates


def _allocate_steps(shares: np.ndarray, batches: np.ndarray, num_samples: int) -> np.ndarray:
    """Largest-remainder apportionment of as many steps as ``num_samples`` images fill."""
    steps = int(num_samples / float(shares @ batches) + 1e-9)
    while True:
        quota = shares * steps
        counts = np.floor(quota + 1e-9).astype(np.int64)
        remainder_order = np.argsort(-(quota - counts), kind="stable")
        counts[remainder_order[: steps - int(counts.sum())]] += 1
        if int(counts @ batches) <= num_samples:
            return counts
        steps -= 1
