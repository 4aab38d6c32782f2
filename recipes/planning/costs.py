"""What a recipe's regime amounts to, without touching data: steps, pixels, arithmetic, and time where steps were timed.

>>> from mixsize.recipes.config.compose import compose
>>> plan = make_plan(compose(["imagenet/resnet50", "regime/s144_bplus", "regime.rounding=pow2"]))
>>> plan.steps_total, round(plan.pixels_per_epoch_ratio, 3)
(168750, 0.463)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mixsize.algorithms.regime.plan import plan_sizes
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.models.flops import count_macs
from mixsize.recipes.models.network import check_sizes, network_stride, planned_network
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.records.step_times import Shape, describe_shape
from mixsize.system.ranks import process_rank


@dataclass(frozen=True)
class PlannedShape:
    """One shape that steps take.

    Attributes:
        size_px: image side S in pixels.
        batch_size: distinct images B in a step, over all ranks.
        duplicates: augmented copies D of each.
        share: of the samples, of the steps or of the epochs, see :attr:`Plan.share_of`.
        steps_per_epoch: of an epoch in which it is drawn from; a mean where one size is drawn for a whole epoch.
        steps_total: of the run.
        pixels_per_step_ratio: pixels of a step over those of the base's.
        macs_per_image: multiply-accumulates of the network's forward pass; None where they cannot be counted.
        seconds_per_step: as measured; None where it was not.
    """

    size_px: int
    batch_size: int
    duplicates: int
    share: float
    steps_per_epoch: float
    steps_total: float
    pixels_per_step_ratio: float
    macs_per_image: int | None
    seconds_per_step: float | None

    @property
    def shape(self) -> Shape:
        """Size, batch and duplicates."""
        return self.size_px, self.batch_size, self.duplicates

    @property
    def pixels_per_step(self) -> int:
        """Pixels of a step, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates

    @property
    def macs_per_step(self) -> int | None:
        """Multiply-accumulates of a step's forward pass, over all ranks."""
        return None if self.macs_per_image is None else self.macs_per_image * self.batch_size * self.duplicates


@dataclass(frozen=True)
class Plan:
    """A recipe's regime over a whole run.

    Attributes:
        name: the recipe's.
        model: the network's.
        images: of the training data.
        max_duration: the recipe's.
        mode: the regime's.
        share_of: what a shape's share is a fraction of: ``samples``, ``steps``, or ``epochs`` for phases.
        draw: how often a size is drawn: ``step``, ``epoch``, or ``phase``.
        base: the step that the budget comes from.
        shapes: what steps take; those of a phase side by side.
        epochs: of the run; the last one may be cut short.
        size_by_epoch: the side of each epoch in pixels, where it has one only; else empty.
        steps_per_epoch: the mean over the run.
        steps_total: of the run, exactly.
        mean_size_px: weighted by share.
        mean_batch_size: distinct images in a step, over the run's steps.
        mean_duplicates: weighted by share.
        lr_scale: factor of the linear rule; None for phases.
        pixels_per_epoch_ratio: pixels of an epoch over those of the base's.
        macs_per_epoch_ratio: the same of multiply-accumulates; None where they cannot be counted.
        regime_digest: the regime's.
    """

    name: str
    model: str
    images: int
    max_duration: str
    mode: str
    share_of: str
    draw: str
    base: Base
    shapes: tuple[PlannedShape, ...]
    epochs: float
    size_by_epoch: tuple[int, ...]
    steps_per_epoch: float
    steps_total: int
    mean_size_px: float
    mean_batch_size: float
    mean_duplicates: float
    lr_scale: float | None
    pixels_per_epoch_ratio: float
    macs_per_epoch_ratio: float | None
    regime_digest: str

    @property
    def pixels_per_step_ratio(self) -> float:
        """Mean pixels of a step over those of the base's."""
        return self.pixels_per_epoch_ratio * self.mean_batch_size / self.base.batch_size

    @property
    def untimed(self) -> list[str]:
        """The shapes whose step was not timed, in words."""
        return [describe_shape(row.shape) for row in self.shapes if row.seconds_per_step is None]

    @property
    def seconds_total(self) -> float | None:
        """Of the run's training steps; None unless every shape was timed."""
        seconds = [row.seconds_per_step and row.steps_total * row.seconds_per_step for row in self.shapes]
        return None if None in seconds else math.fsum(filter(None, seconds))

    @property
    def seconds_per_epoch(self) -> float | None:
        """Of the training steps of a mean epoch."""
        return None if self.seconds_total is None else self.seconds_total / self.epochs


class Costs:
    """What a network takes and costs by image side, each found out once.

    Args:
        network: on any device; it is not changed.
        name: what messages call it.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self._name = name
        self._checked: set[int] = set()
        self._macs: dict[int, int | None] = {}

    def check(self, sizes_px: Iterable[int]) -> None:
        """Refuse sizes that the network cannot take; see :func:`~mixsize.recipes.models.network.check_sizes`."""
        unknown = set(sizes_px) - self._checked
        if unknown:
            check_sizes(self.network, self._name, unknown)
        self._checked |= unknown

    def macs(self, size_px: int) -> int | None:
        """Of one image's forward pass; None where the network does not run without data."""
        if size_px not in self._macs:
            try:
                self._macs[size_px] = count_macs(self.network, size_px)
            except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError, IndexError):
                self._macs[size_px] = None
        return self._macs[size_px]


def make_plan(recipe: Recipe, step_times: Mapping[Shape, float] | None = None, costs: Costs | None = None) -> Plan:
    """Work out what a recipe's regime amounts to.

    Args:
        recipe: with ``data.train_images``.
        step_times: measured seconds by shape.
        costs: of the recipe's network, where they are at hand.

    Raises:
        ValueError: no ``data.train_images``, a regime that cannot be, or a run whose length is a time.
    """
    images = recipe.data.train_images
    if images is None:
        raise ValueError(
            "data.train_images is not given; a plan needs the number of training images, for instance "
            "data.train_images=50000"
        )
    _, ranks = process_rank()
    costs = costs or Costs(planned_network(recipe), recipe.model.name)
    regime = build_regime(recipe, network_stride(costs.network), ranks)
    costs.check(choice.size_px for part in regime.regimes for choice in part.choices)
    run = _walk(recipe, regime, images)
    base_macs = costs.macs(regime.base.size_px)
    shapes: list[PlannedShape] = []
    macs = 0.0
    for stretch in run.stretches:
        part = stretch.regime
        expected = _expected_steps(part, images)
        for choice, steps, total, share in zip(part.choices, expected, stretch.steps, part.sample_shares, strict=True):
            image_macs = costs.macs(choice.size_px)
            macs += stretch.weight * share * choice.duplicates * (image_macs or 0)
            shapes.append(
                PlannedShape(
                    size_px=choice.size_px,
                    batch_size=choice.batch_size,
                    duplicates=choice.duplicates,
                    share=choice.share * stretch.weight,
                    steps_per_epoch=steps,
                    steps_total=total,
                    pixels_per_step_ratio=choice.pixels / regime.base.pixels,
                    macs_per_image=image_macs,
                    seconds_per_step=(step_times or {}).get((choice.size_px, choice.batch_size, choice.duplicates)),
                )
            )
    counted = base_macs and all(shape.macs_per_image is not None for shape in shapes)
    weights = [(stretch.weight, stretch.regime) for stretch in run.stretches]
    steps_per_epoch = [weight * sum(_expected_steps(part, images)) for weight, part in weights]
    batches = [steps * part.mean_batch_size for steps, (_, part) in zip(steps_per_epoch, weights, strict=True)]
    return Plan(
        name=recipe.name,
        model=recipe.model.name,
        images=images,
        max_duration=recipe.max_duration,
        mode=recipe.regime.mode,
        share_of=regime.share_of if isinstance(regime, Regime) else "epochs",
        draw=regime.draw if isinstance(regime, Regime) else "phase",
        base=regime.base,
        shapes=tuple(shapes),
        epochs=run.epochs,
        size_by_epoch=run.size_by_epoch,
        steps_per_epoch=math.fsum(steps_per_epoch),
        steps_total=round(math.fsum(shape.steps_total for shape in shapes)),
        mean_size_px=math.fsum(weight * part.mean_size_px for weight, part in weights),
        mean_batch_size=math.fsum(batches) / math.fsum(steps_per_epoch),
        mean_duplicates=math.fsum(weight * part.mean_duplicates for weight, part in weights),
        lr_scale=regime.lr_scale if isinstance(regime, Regime) else None,
        pixels_per_epoch_ratio=math.fsum(weight * part.pixels_per_epoch_ratio for weight, part in weights),
        macs_per_epoch_ratio=macs / (regime.base.duplicates * base_macs) if counted else None,
        regime_digest=regime.digest(),
    )


@dataclass(frozen=True)
class _Stretch:
    """A regime, the fraction of the run's epochs that it is drawn from, and the steps that each choice takes."""

    regime: Regime
    weight: float
    steps: tuple[float, ...]


@dataclass(frozen=True)
class _Run:
    stretches: tuple[_Stretch, ...]
    epochs: float
    size_by_epoch: tuple[int, ...]


def _walk(recipe: Recipe, regime: Regime | Progression, images: int) -> _Run:
    """Go through the run's epochs as they will be drawn."""
    length, unit = recipe.duration
    if unit == "sec":
        raise ValueError(
            f"max_duration is {recipe.max_duration}; how many steps that is, only training shows: give epochs or "
            "batches for a plan, for instance max_duration=1ep"
        )
    steps = [[0.0] * len(part.choices) for part in regime.regimes]
    epochs = [0.0] * len(regime.regimes)
    sizes: list[int] = []
    epoch, left = 0, float(length)
    while left > 0:
        index = regime.phase_at(epoch) if isinstance(regime, Progression) else 0
        part = regime.regimes[index]
        counts = _epoch_steps(part, images, recipe.seed, epoch)
        taken = min(1.0, left if unit == "ep" else left / sum(counts))
        for i, count in enumerate(counts):
            steps[index][i] += taken * count
        epochs[index] += taken
        sizes += [choice.size_px for choice, count in zip(part.choices, counts, strict=True) if count]
        left -= 1 if unit == "ep" else sum(counts)
        epoch += 1
    total = math.fsum(epochs)
    stretches = tuple(
        _Stretch(part, count / total, tuple(taken))
        for part, count, taken in zip(regime.regimes, epochs, steps, strict=True)
        if count
    )
    return _Run(stretches, total, tuple(sizes) if len(sizes) == epoch else ())


def _epoch_steps(regime: Regime, images: int, seed: int, epoch: int) -> Sequence[int]:
    """Steps of each choice in one epoch."""
    if regime.draw == "step":
        return regime.step_counts(images)
    drawn = int(plan_sizes(regime, 1, seed, epoch)[0])
    return [regime.epoch_steps(choice, images) if choice.size_px == drawn else 0 for choice in regime.choices]


def _expected_steps(regime: Regime, images: int) -> Sequence[float]:
    """Steps of each choice in the mean epoch."""
    if regime.draw == "step":
        return regime.step_counts(images)
    return [
        share * regime.epoch_steps(choice, images)
        for share, choice in zip(regime.sample_shares, regime.choices, strict=True)
    ]
