"""Steps, pixels, multiply-accumulates and time of a recipe's regime, computed without its data.

>>> from mixsize.recipes.config.compose import compose
>>> plan = make_plan(compose(["imagenet/resnet50", "regime/s144_bplus", "regime.rounding=pow2"]))
>>> plan.steps_total, round(plan.pixels_per_epoch_ratio, 3)
(168840, 0.463)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from torch import nn

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.spans import Span
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.models.flops import count_macs
from mixsize.recipes.models.network import check_sizes, planned_network
from mixsize.recipes.planning.checks import check_recipe
from mixsize.recipes.planning.regimes import spans_of_run
from mixsize.recipes.records.step_times import Shape, describe_shape
from mixsize.system.ranks import process_rank


@dataclass(frozen=True)
class PlannedShape:
    """One shape that steps take, in a phase or in all of them.

    Attributes:
        size_px: image side S in pixels.
        batch_size: distinct images B in a step, over all ranks.
        duplicates: augmented copies D of each.
        share: of the samples, of the steps or of the epochs, see :attr:`Plan.share_of`.
        steps_per_epoch: of the mean epoch of its phases.
        steps_total: of the run.
        pixels_per_step_ratio: pixels of a step relative to the base's step.
        macs_per_image: multiply-accumulates of the network's forward pass; None if they cannot be counted.
        seconds_per_step: as measured; None if it was not.
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
    def samples_total(self) -> float:
        """Distinct images of the run's steps."""
        return self.steps_total * self.batch_size

    @property
    def pixels_per_step(self) -> int:
        """Pixels of a step, over all ranks."""
        return self.size_px**2 * self.batch_size * self.duplicates

    @property
    def macs_per_step(self) -> int | None:
        """Multiply-accumulates of a step's forward pass, over all ranks."""
        return None if self.macs_per_image is None else self.macs_per_image * self.batch_size * self.duplicates


@dataclass(frozen=True)
class PlannedPhase:
    """Epochs of the run that are drawn from one regime.

    Attributes:
        regime: the regime.
        start: its first epoch.
        epochs: number of epochs; the run's last one may be cut short.
        shapes: one for each choice of the regime.
    """

    regime: Regime
    start: int
    epochs: float
    shapes: tuple[PlannedShape, ...]


@dataclass(frozen=True)
class Plan:
    """A recipe's regime over a whole run.

    Attributes:
        recipe: the recipe.
        regime: its regime.
        phases: one for a regime, those that the run reaches for a progression.
        size_by_epoch: the side of each epoch in pixels if every epoch has one size, else empty.
        base_macs: multiply-accumulates of one image's forward pass at the base size; None if they cannot be counted.
    """

    recipe: Recipe
    regime: Regime | Progression
    phases: tuple[PlannedPhase, ...]
    size_by_epoch: tuple[int, ...]
    base_macs: int | None

    @property
    def base(self) -> Base:
        """The step that the budget comes from."""
        return self.regime.base

    @property
    def share_of(self) -> str:
        """The whole that a shape's share is a fraction of: ``samples``, ``steps``, or ``epochs`` for phases."""
        return self.regime.share_of if isinstance(self.regime, Regime) else "epochs"

    @property
    def draw(self) -> str:
        """How often a size is drawn: ``step``, ``epoch``, or ``phase``."""
        return self.regime.draw if isinstance(self.regime, Regime) else "phase"

    @property
    def lr_scale(self) -> float | None:
        """Factor of the linear learning-rate rule; None for phases."""
        return self.regime.lr_scale if isinstance(self.regime, Regime) else None

    @property
    def strengths(self) -> tuple[str, ...]:
        """The training settings that phases set."""
        return self.regime.strengths if isinstance(self.regime, Progression) else ()

    @cached_property
    def shapes(self) -> tuple[PlannedShape, ...]:
        """The shapes of all phases, each once; those of mixtures from the largest size to the smallest."""
        of_shape: dict[Shape, list[tuple[PlannedShape, float]]] = {}
        for phase in self.phases:
            for row in phase.shapes:
                of_shape.setdefault(row.shape, []).append((row, phase.epochs))
        joined = [_joined(rows) for rows in of_shape.values()]
        if len(self.phases) > 1 and any(len(phase.shapes) > 1 for phase in self.phases):
            joined.sort(key=lambda row: row.size_px, reverse=True)
        return tuple(joined)

    @property
    def epochs(self) -> float:
        """Epochs of the run."""
        return math.fsum(phase.epochs for phase in self.phases)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of the mean epoch."""
        return math.fsum(shape.steps_total for shape in self.shapes) / self.epochs

    @property
    def steps_total(self) -> int:
        """Steps of the run, exactly."""
        return round(math.fsum(shape.steps_total for shape in self.shapes))

    @property
    def mean_size_px(self) -> float:
        """Mean side in pixels, weighted as the shares are."""
        return self._mean(lambda shape: shape.size_px, by_steps=self.share_of == "steps")

    @property
    def mean_batch_size(self) -> float:
        """Distinct images in the mean step."""
        return self._mean(lambda shape: shape.batch_size, by_steps=True)

    @property
    def mean_duplicates(self) -> float:
        """Mean number of duplicates, weighted as the shares are."""
        return self._mean(lambda shape: shape.duplicates, by_steps=self.share_of == "steps")

    @property
    def pixels_per_epoch_ratio(self) -> float:
        """Pixels of an epoch relative to the base's epoch."""
        return self._mean(lambda shape: shape.size_px**2 * shape.duplicates) / (
            self.base.size_px**2 * self.base.duplicates
        )

    @property
    def pixels_per_step_ratio(self) -> float:
        """Mean pixels of a step relative to the base's step."""
        return self.pixels_per_epoch_ratio * self.mean_batch_size / self.base.batch_size

    @property
    def macs_per_epoch_ratio(self) -> float | None:
        """Multiply-accumulates of an epoch relative to the base's epoch; None if they cannot be counted."""
        if not self.base_macs or any(shape.macs_per_image is None for shape in self.shapes):
            return None
        macs = self._mean(lambda shape: (shape.macs_per_image or 0) * shape.duplicates)
        return macs / (self.base.duplicates * self.base_macs)

    @property
    def untimed(self) -> list[str]:
        """The shapes without a measured step, in words."""
        return [describe_shape(row.shape) for row in self.shapes if row.seconds_per_step is None]

    @property
    def seconds_total(self) -> float | None:
        """Time of the run's training steps; None unless every shape was timed."""
        if self.untimed:
            return None
        return math.fsum(row.steps_total * (row.seconds_per_step or 0) for row in self.shapes)

    @property
    def seconds_per_epoch(self) -> float | None:
        """Time of the training steps of the mean epoch; None unless every shape was timed."""
        return None if self.seconds_total is None else self.seconds_total / self.epochs

    def _mean(self, value: Callable[[PlannedShape], float], by_steps: bool = False) -> float:
        """Mean over the run's distinct images, or over its steps."""
        weights = [shape.steps_total if by_steps else shape.samples_total for shape in self.shapes]
        values = [weight * value(shape) for weight, shape in zip(weights, self.shapes, strict=True)]
        return math.fsum(values) / math.fsum(weights)


class Costs:
    """Sizes that a network takes and their cost, each computed once.

    Args:
        network: on any device; it is not changed.
        name: of the network, for messages.
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
        """Return the multiply-accumulates of one image's forward pass; None if they cannot be counted."""
        if size_px not in self._macs:
            try:
                self._macs[size_px] = count_macs(self.network, size_px)
            except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError, IndexError):
                self._macs[size_px] = None
        return self._macs[size_px]


def make_plan(recipe: Recipe, step_times: Mapping[Shape, float] | None = None, costs: Costs | None = None) -> Plan:
    """Compute the steps and costs of a recipe's regime, after the checks of training that need no data file.

    Args:
        recipe: with ``data.train_images``.
        step_times: measured seconds by shape.
        costs: of the recipe's network, if the caller has them.

    Raises:
        ValueError: no ``data.train_images``, a regime that training would refuse, or a run whose length is a time.
    """
    images = recipe.data.train_images
    if images is None:
        raise ValueError(
            f"there is no file {recipe.data.train}, and data.train_images is not given; a plan needs the number of "
            "training images, for instance "
            "data.train_images=50000"
        )
    if recipe.duration[1] == "sec":
        raise ValueError(
            f"max_duration is {recipe.max_duration}; its number of steps is known only after training: give epochs or "
            "batches for a plan, for instance max_duration=1ep"
        )
    costs = costs or Costs(planned_network(recipe), recipe.model.name)
    regime = check_recipe(recipe, costs, images, process_rank()[1])
    spans = spans_of_run(recipe, regime, images)
    run_epochs = math.fsum(span.epochs for span in spans)
    phases = []
    for index, of_phase in groupby(spans, key=lambda span: span.regime):
        part, of_part = regime.regimes[index], list(of_phase)
        epochs = math.fsum(span.epochs for span in of_part)
        totals = [math.fsum(span.epochs * span.steps[i] for span in of_part) for i in range(len(part.choices))]
        shapes = [
            PlannedShape(
                size_px=choice.size_px,
                batch_size=choice.batch_size,
                duplicates=choice.duplicates,
                share=choice.share * epochs / run_epochs,
                steps_per_epoch=total / epochs,
                steps_total=total,
                pixels_per_step_ratio=choice.pixels / regime.base.pixels,
                macs_per_image=costs.macs(choice.size_px),
                seconds_per_step=(step_times or {}).get((choice.size_px, choice.batch_size, choice.duplicates)),
            )
            for choice, total in zip(part.choices, totals, strict=True)
        ]
        start = regime.starts[index] if isinstance(regime, Progression) else 0
        phases.append(PlannedPhase(part, start, epochs, tuple(shapes)))
    return Plan(recipe, regime, tuple(phases), _size_by_epoch(regime, spans), costs.macs(regime.base.size_px))


def _joined(rows: list[tuple[PlannedShape, float]]) -> PlannedShape:
    """One row of the rows of one shape in phases of so many epochs."""
    first = rows[0][0]
    if len(rows) == 1:
        return first
    total = math.fsum(row.steps_total for row, _ in rows)
    share = math.fsum(row.share for row, _ in rows)
    return replace(first, share=share, steps_total=total, steps_per_epoch=total / math.fsum(part for _, part in rows))


def _size_by_epoch(regime: Regime | Progression, spans: list[Span]) -> tuple[int, ...]:
    sizes: list[int] = []
    for span in spans:
        choices = regime.regimes[span.regime].choices
        drawn = [choice.size_px for choice, steps in zip(choices, span.steps, strict=True) if steps]
        if len(drawn) > 1:
            return ()
        sizes += drawn * math.ceil(span.epochs)
    return tuple(sizes)
