"""The ``regime`` section of a recipe: its variants, and the regime that each of them builds."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mixsize.algorithms.regime import progression, regime
from mixsize.algorithms.regime.checks import MAX_EPOCHS
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS, check_stride
from mixsize.recipes.config.section import (
    FILLED_LIST,
    LIST,
    NaturalFloat,
    NaturalInt,
    Path,
    Pixels,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Section,
    fault,
)

Rounding = Literal["nearest", "pow2", "budget"]


#: Thirds are written as 0.333.
_FRACTIONS_TOLERANCE = 0.005


class Base(Section):
    """The fixed-size training that sets the regime's budget."""

    size_px: Pixels = Field(description="image side in pixels")
    batch_size: PositiveInt = Field(description="distinct samples in a step, over all ranks together")
    duplicates: PositiveInt = Field(1, description="augmented views of each sample in a step")


class Choice(Base):
    """One row of a regime table."""

    share: PositiveFraction = Field(description="share of the samples or of the steps, see regime.share_of")


class Phase(Section):
    """Consecutive epochs at one size."""

    size_px: Pixels = Field(description="image side in pixels")
    epochs: PositiveInt | None = Field(
        None, description="number of epochs; the last phase continues to the end of training"
    )
    fraction: PositiveFraction | None = Field(
        None, description="in place of epochs: part of a max_duration in epochs, rounded to whole ones"
    )
    batch_size: PositiveInt | None = Field(None, description="distinct samples in a step; null: by the base's budget")
    lr_factor: PositiveFloat = Field(1.0, description="factor of the learning rate in this phase")
    crop_scale: Annotated[tuple[PositiveFraction, PositiveFraction], LIST] | None = Field(
        None, description="lowest and highest area of random resized crops in this phase; null: data.augment's"
    )


class Ramp(Section):
    """A size that grows linearly."""

    start_px: Pixels = Field(description="image side up to begin_epoch, in pixels")
    end_px: Pixels = Field(description="image side from end_epoch on, in pixels")
    begin_epoch: NaturalInt = Field(0, description="the last epoch at start_px")
    end_epoch: PositiveInt = Field(description="the first epoch at end_px")
    step_px: PositiveInt | None = Field(None, description="sizes are rounded to multiples of it; null: the stride")
    batch_size: PositiveInt | None = Field(
        None, description="distinct samples in a step at every size; null: by the base's budget"
    )


def _in_one_order(sizes: dict[int, float]) -> dict[int, float]:
    # The order of a mapping has no meaning in a recipe, so it must not influence the drawing of sizes.
    return dict(sorted(sizes.items(), reverse=True))


SizeName = Literal[tuple(SIZE_DISTRIBUTIONS)]  # pyright: ignore[reportInvalidTypeForm]
SizeShares = Annotated[
    dict[Pixels, PositiveFraction], Field(min_length=1), AfterValidator(_in_one_order), Tag("shares")
]
Sizes = Annotated[
    Annotated[SizeName, Tag("name")] | SizeShares,
    Discriminator(lambda value: "shares" if isinstance(value, Mapping) else "name"),
]


class _AnyRegime(Section):
    mode: str  # Each variant narrows it; declared here so that it is written first.
    base: Base = Field(description="the fixed-size baseline: side, global batch and duplicates")
    batch_multiple: PositiveInt | None = Field(
        None, description="every global batch is a multiple of this many samples; null: the number of ranks"
    )
    stride: PositiveInt | None = Field(
        None,
        description="sizes must be multiples of this many pixels; null: the network's own stride; 1: any size, whose"
        " feature maps the network rounds",
    )

    @property
    def _base(self) -> regime.Base:
        return regime.Base(self.base.size_px, self.base.batch_size, self.base.duplicates)

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> regime.Regime | Progression:
        """Return the regime.

        Args:
            stride_px: the network's stride in pixels; ``stride`` overrides it.
            batch_multiple: number of processes; ``batch_multiple`` overrides it.
            epochs: length of the run; None if it is not given in epochs.

        Raises:
            ValueError: sizes, shares, batches or phases that are not possible together.
        """
        raise NotImplementedError

    @model_validator(mode="after")
    def _can_be_built(self) -> "_AnyRegime":
        built = self.build(self.stride or 1, self.batch_multiple or 1, MAX_EPOCHS)
        if self.stride is not None:
            check_stride([choice.size_px for part in built.regimes for choice in part.choices], self.stride)
        return self

    def _check_batch(self, batch_size: int, at: Path) -> None:
        if self.batch_multiple is not None and batch_size % self.batch_multiple:
            raise fault(f"must be a multiple of regime.batch_multiple {self.batch_multiple}", (*at, "batch_size"))


class FixedRegime(_AnyRegime):
    """Every step at the base size and batch."""

    mode: Literal["fixed"] = Field("fixed", description="variant")

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> regime.Regime:
        """Return the base as the only choice."""
        self._check_batch(self.base.batch_size, ("base",))
        return regime.Regime.fixed(self._base)


class _DrawnRegime(_AnyRegime):
    share_of: Literal["samples", "steps"] = Field(
        "samples", description="the shares divide the samples of an epoch, or its steps"
    )
    draw: Literal["step", "epoch"] = Field("step", description="a size is drawn for every step, or for every epoch")


class MixedRegime(_DrawnRegime):
    """Sizes drawn at random; `B+` fills the budget of a smaller size with samples, `D+` with duplicates."""

    mode: Literal["B+", "D+"] = Field(description="variant")
    sizes: Sizes = Field(  # pyright: ignore[reportInvalidTypeForm]
        description="pixels -> share, or the name of one of the paper's tables"
    )
    rounding: Rounding = Field(
        "nearest",
        description="rounding of the batch or the duplicates: to the nearest integer, to a power of two (the paper's"
        " step counts), or down so that no step exceeds the baseline's pixels",
    )

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> regime.Regime:
        """Return the distribution with a batch or duplicates for each size."""
        return regime.Regime.from_sizes(
            self.sizes,
            self._base,
            self.mode,
            share_of=self.share_of,
            rounding=self.rounding,
            draw=self.draw,
            batch_multiple=self.batch_multiple or batch_multiple,
        )


class TableRegime(_DrawnRegime):
    """Sizes, batches and duplicates drawn from the given rows."""

    mode: Literal["table"] = Field(description="variant")
    choices: Annotated[tuple[Choice, ...], FILLED_LIST] = Field(description="the rows that steps are drawn from")

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> regime.Regime:
        """Return the table."""
        for index, row in enumerate(self.choices):
            self._check_batch(row.batch_size, ("choices", index))
        rows = [regime.Choice(row.size_px, row.batch_size, row.duplicates, row.share) for row in self.choices]
        return regime.Regime.from_choices(self._base, rows, share_of=self.share_of, draw=self.draw)


class ProgressiveRegime(_AnyRegime):
    """Sizes that grow during training, in phases or along a ramp."""

    mode: Literal["progressive"] = Field(description="variant")
    phases: Annotated[tuple[Phase, ...], FILLED_LIST] | None = Field(
        None, description="phases in order; or give a ramp"
    )
    ramp: Ramp | None = Field(None, description="a linear ramp; or give phases")
    rounding: Rounding = Field("nearest", description="rounding of the batches, as for B+")
    warmup_epochs: NaturalFloat = Field(0.0, description="epochs of linear rise to a phase's learning rate")
    batch_norm: Literal["keep", "reset", "freeze"] = Field(
        "keep", description="running statistics at a transition: kept, re-estimated, or frozen for freeze_steps"
    )
    freeze_steps: NaturalInt = Field(0, description="steps that batch norm stays frozen after a transition")
    reset_batches: PositiveInt = Field(50, description="batches that a reset averages over")

    @model_validator(mode="after")
    def _steps_to_freeze(self) -> "ProgressiveRegime":
        if (self.batch_norm == "freeze") != (self.freeze_steps > 0):
            raise fault("must be at least 1 with regime.batch_norm freeze, and 0 without", ("freeze_steps",))
        return self

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> Progression:
        """Return the phases, those of the ramp included."""
        if (self.phases is None) == (self.ramp is None):
            raise fault("needs either regime.phases or regime.ramp")
        multiple = self.batch_multiple or batch_multiple
        if self.phases is not None:
            phases = tuple(
                progression.Phase(phase.size_px, length, phase.batch_size, phase.lr_factor, phase.crop_scale)
                for phase, length in zip(self.phases, self._phase_epochs(self.phases, epochs), strict=True)
            )
            return Progression(self._base, phases, self.warmup_epochs, self.rounding, multiple)
        assert self.ramp is not None
        built = Progression.ramp(
            self._base,
            self.ramp.start_px,
            self.ramp.end_px,
            begin_epoch=self.ramp.begin_epoch,
            end_epoch=self.ramp.end_epoch,
            step_px=self.ramp.step_px or self.stride or stride_px,
            rounding=self.rounding,
            batch_multiple=multiple,
        )
        phases = tuple(replace(phase, batch_size=self.ramp.batch_size) for phase in built.phases)
        return replace(built, phases=phases, warmup_epochs=self.warmup_epochs)

    @property
    def follows_duration(self) -> bool:
        """Whether a longer run has other phases."""
        return any(phase.fraction is not None for phase in self.phases or ())

    def _phase_epochs(self, phases: tuple[Phase, ...], epochs: int | None) -> list[int]:
        for index, phase in enumerate(phases):
            if (phase.epochs is None) == (phase.fraction is None):
                raise fault("needs either epochs or fraction", ("phases", index))
            if (phase.epochs is None) != (phases[0].epochs is None):
                raise fault("mixes epochs and fractions; give all phases one of the two", ("phases", index))
        if not self.follows_duration:
            return [phase.epochs or 0 for phase in phases]
        assert epochs is not None
        ends = list(accumulate(phase.fraction or 0 for phase in phases))
        if abs(ends[-1] - 1) > _FRACTIONS_TOLERANCE:
            raise fault(f"has fractions that sum to {ends[-1]:.6g}; they must sum to 1", ("phases",))
        return [end - start for start, end in pairwise([0, *(round(end * epochs) for end in ends)])]


Regime = Annotated[FixedRegime | MixedRegime | TableRegime | ProgressiveRegime, Field(discriminator="mode")]
