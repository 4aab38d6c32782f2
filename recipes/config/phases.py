"""The parts of a progressive regime in a recipe: phases, a ramp, a shift, and strengths of training settings."""

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import AfterValidator, Discriminator, Field, Tag

from mixsize.algorithms.regime import phases, strengths
from mixsize.algorithms.regime.progression import MAX_STAGES
from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS
from mixsize.algorithms.regime.strengths import STRENGTHS
from mixsize.recipes.config.section import (
    LIST,
    Fraction,
    FractionBelowOne,
    NaturalFloat,
    NaturalInt,
    Pixels,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Section,
    fault,
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

FittedMode = Annotated[
    Literal["B+", "D+"], Field(description="what fills the budget of a smaller size: samples, or duplicates")
]
ShareOf = Annotated[
    Literal["samples", "steps"], Field(description="the shares divide the samples of an epoch, or its steps")
]
Draw = Annotated[Literal["step", "epoch"], Field(description="a size is drawn for every step, or for every epoch")]


_KIND = Discriminator(lambda value: "ends" if isinstance(value, list | tuple) else "held")
_Strength = Annotated[
    Annotated[NaturalFloat, Tag("held")] | Annotated[tuple[NaturalFloat, NaturalFloat], LIST, Tag("ends")], _KIND
]
_Rate = Annotated[
    Annotated[FractionBelowOne, Tag("held")] | Annotated[tuple[FractionBelowOne, FractionBelowOne], LIST, Tag("ends")],
    _KIND,
]


class Strengths(Section):
    """Strengths of training settings: a number that holds, or those of the first and last epoch, on a line."""

    magnitude: _Strength | None = Field(None, description="magnitude of data.augment.policy; null: as set there")
    mixup: _Strength | None = Field(None, description="parameter of Mixup; null: as set in mixing")
    cutmix: _Strength | None = Field(None, description="parameter of CutMix; null: as set in mixing")
    dropout: _Rate | None = Field(
        None, description="in place of model.kwargs.drop_rate, each layer in proportion; null: as set there"
    )
    drop_path: _Rate | None = Field(
        None, description="in place of model.kwargs.drop_path_rate, each block in proportion; null: as set there"
    )
    label_smoothing: _Rate | None = Field(
        None, description="probability mass spread evenly over all classes; null: as set in loss"
    )

    @property
    def given(self) -> dict[str, float | strengths.Ramp]:
        """Setting -> value, without those that are left as they are."""
        return {name: getattr(self, name) for name in STRENGTHS if getattr(self, name) is not None}

    @property
    def changing(self) -> list[str]:
        """The settings whose value changes from epoch to epoch."""
        return [name for name, value in self.given.items() if isinstance(value, tuple) and value[0] != value[1]]


class _PhaseOfSizes(Section):
    size_px: Pixels | None = Field(None, description="image side in pixels; or give sizes")
    sizes: Sizes | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        None, description="in place of size_px: pixels -> share, or the name of one of the paper's tables"
    )
    mode: FittedMode = "B+"
    share_of: ShareOf = "samples"
    draw: Draw = "step"
    epochs: PositiveInt | None = Field(
        None, description="number of epochs; the last phase continues to the end of training"
    )
    fraction: PositiveFraction | None = Field(
        None, description="in place of epochs: part of a max_duration in epochs, rounded to whole ones"
    )
    batch_size: PositiveInt | None = Field(
        None, description="distinct samples in a step of size_px; null: by the base's budget"
    )
    lr_factor: PositiveFloat = Field(1.0, description="factor of the learning rate in this phase")
    crop_scale: Annotated[tuple[PositiveFraction, PositiveFraction], LIST] | None = Field(
        None, description="lowest and highest area of random resized crops in this phase; null: data.augment's"
    )


class Phase(Strengths, _PhaseOfSizes):
    """Consecutive epochs at one size, or at sizes drawn at random."""

    def build(self, epochs: int) -> phases.Phase:
        """Return the phase, of so many epochs."""
        sizes = self.size_px or self.sizes
        assert sizes is not None
        return phases.Phase(
            sizes,
            epochs,
            self.batch_size,
            self.lr_factor,
            self.crop_scale,
            self.mode,
            self.share_of,
            self.draw,
            self.given,
        )


class _Between(Section):
    """From one epoch to another, given as epochs or as fractions of the run."""

    begin_epoch: NaturalInt = Field(0, description="the last epoch at the start")
    end_epoch: PositiveInt | None = Field(None, description="the first epoch at the end")
    begin_fraction: Fraction | None = Field(
        None, description="in place of begin_epoch: 0 is the first epoch of a max_duration in epochs, 1 the last"
    )
    end_fraction: PositiveFraction | None = Field(None, description="in place of end_epoch, as begin_fraction")

    @property
    def follows_duration(self) -> bool:
        """Whether it is given as fractions of the run."""
        return self.end_fraction is not None

    def span(self, key: str, epochs: int | None) -> tuple[int, int]:
        """The first and the last epoch.

        Args:
            key: its name in the regime, for errors.
            epochs: length of the run; None if it is not given in epochs.
        """
        if (self.end_epoch is None) == (self.end_fraction is None):
            raise fault("needs either end_epoch or end_fraction", (key,))
        if self.end_fraction is None:
            assert self.end_epoch is not None
            if self.begin_fraction is not None:
                raise fault("needs end_fraction; with end_epoch, give begin_epoch", (key, "begin_fraction"))
            return self.begin_epoch, self.end_epoch
        if self.begin_epoch:
            raise fault("needs end_epoch; with end_fraction, give begin_fraction", (key, "begin_epoch"))
        assert epochs is not None
        return round((self.begin_fraction or 0) * (epochs - 1)), round(self.end_fraction * (epochs - 1))


class Ramp(_Between):
    """A size that grows linearly."""

    start_px: Pixels = Field(description="image side up to begin_epoch, in pixels")
    end_px: Pixels = Field(description="image side from end_epoch on, in pixels")
    step_px: PositiveInt | None = Field(None, description="sizes are rounded to multiples of it; null: the stride")
    batch_size: PositiveInt | None = Field(
        None, description="distinct samples in a step at every size; null: by the base's budget"
    )


class Shift(_Between):
    """A mixture of sizes that shifts linearly from one table to another."""

    start: Sizes = Field(  # pyright: ignore[reportInvalidTypeForm]
        description="up to begin_epoch: pixels -> share, or the name of one of the paper's tables"
    )
    end: Sizes = Field(  # pyright: ignore[reportInvalidTypeForm]
        description="from end_epoch on: pixels -> share, or the name of one of the paper's tables"
    )
    stages: Annotated[int, Interval(ge=1, le=MAX_STAGES)] = Field(
        20, description="number of equal stages from start to end; the smallest share must fill a batch"
    )
    mode: FittedMode = "B+"
    share_of: ShareOf = "samples"
    draw: Draw = "step"
