"""The ``regime`` section of a recipe: its variants, and the regime that each of them builds."""

from dataclasses import replace
from math import fsum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixsize.algorithms.regime import regime
from mixsize.algorithms.regime.checks import MAX_EPOCHS, check_stride
from mixsize.algorithms.regime.phases import whole_epochs
from mixsize.algorithms.regime.progression import Progression
from mixsize.recipes.config.phases import Draw, Phase, Ramp, ShareOf, Shift, Sizes, Strengths
from mixsize.recipes.config.section import (
    FILLED_LIST,
    NaturalFloat,
    NaturalInt,
    Path,
    Pixels,
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
    share_of: ShareOf = "samples"
    draw: Draw = "step"


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
    """Sizes that change during training: in phases, along a ramp, or in a shift of a mixture."""

    mode: Literal["progressive"] = Field(description="variant")
    phases: Annotated[tuple[Phase, ...], FILLED_LIST] | None = Field(
        None, description="phases in order; or give a ramp or a shift"
    )
    fraction_of: Literal["epochs", "pixels"] = Field(
        "epochs",
        description="regime.phases[].fraction divides the epochs of the run, or its pixels: stages of equal compute",
    )
    ramp: Ramp | None = Field(None, description="a linear ramp of the size; or give phases or a shift")
    shift: Shift | None = Field(None, description="a linear shift of a mixture; or give phases or a ramp")
    strengths: Strengths | None = Field(
        None, description="strengths of training settings from the first to the last epoch, where phases set none"
    )
    rounding: Rounding = Field("nearest", description="rounding of the batches or duplicates, as for B+ and D+")
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
        drawn = [*(self.phases or ()), *([self.shift] if self.shift else ())]
        if self.batch_norm == "freeze" and any(part.draw == "epoch" for part in drawn):
            raise fault("must be keep or reset where sizes are drawn for every epoch", ("batch_norm",))
        return self

    def build(self, stride_px: int, batch_multiple: int, epochs: int | None) -> Progression:
        """Return the phases, those of the ramp or the shift included."""
        if [self.phases, self.ramp, self.shift].count(None) != 2:
            raise fault("needs one of regime.phases, regime.ramp and regime.shift")
        if self.fraction_of == "pixels" and not any(phase.fraction for phase in self.phases or ()):
            raise fault("needs regime.phases with fractions", ("fraction_of",))
        multiple = self.batch_multiple or batch_multiple
        if self.phases is not None:
            built = self._of_phases(self.phases, multiple, epochs)
        elif self.ramp is not None:
            built = self._of_ramp(self.ramp, self.stride or stride_px, multiple, epochs)
        else:
            assert self.shift is not None
            built = self._of_shift(self.shift, multiple, epochs)
        built = replace(built, warmup_epochs=self.warmup_epochs)
        if self._changes_to_the_end:
            assert epochs is not None
            built = built.until(epochs)
        return built if self.strengths is None else built.with_strengths(self.strengths.given)

    @property
    def follows_duration(self) -> tuple[str, str] | None:
        """The key by which a run of another length has other epochs, and what it has; None where a run only goes on."""
        if any(phase.fraction is not None for phase in self.phases or ()):
            return "phases", "fractions"
        for key, part in (("ramp", self.ramp), ("shift", self.shift)):
            if part is not None and part.follows_duration:
                return key, "fractions"
        if self._changes_to_the_end:
            changing = self.strengths is not None and self.strengths.changing
            return "strengths" if changing else "phases", "strengths that change up to the last epoch"
        return None

    @property
    def _changes_to_the_end(self) -> bool:
        """Whether a strength changes from epoch to epoch until training ends."""
        last = self.phases[-1:] if self.phases else ()
        return any(part.changing for part in (*last, *([self.strengths] if self.strengths else ())))

    def _of_phases(self, given: tuple[Phase, ...], multiple: int, epochs: int | None) -> Progression:
        for index, phase in enumerate(given):
            if (phase.size_px is None) == (phase.sizes is None):
                raise fault("needs either size_px or sizes", ("phases", index))
            if (phase.epochs is None) == (phase.fraction is None):
                raise fault("needs either epochs or fraction", ("phases", index))
            if (phase.epochs is None) != (given[0].epochs is None):
                raise fault("mixes epochs and fractions; give all phases one of the two", ("phases", index))
        if given[0].fraction is None:
            return self._progression(given, [phase.epochs or 0 for phase in given], multiple)
        assert epochs is not None
        fractions = [phase.fraction or 0 for phase in given]
        if abs(fsum(fractions) - 1) > _FRACTIONS_TOLERANCE:
            raise fault(f"has fractions that sum to {fsum(fractions):.6g}; they must sum to 1", ("phases",))
        pixels = None
        if self.fraction_of == "pixels":
            of_one_epoch = self._progression(given, [1] * len(given), multiple)
            pixels = [part.pixels_per_epoch_ratio for part in of_one_epoch.regimes]
        return self._progression(given, whole_epochs(fractions, epochs, pixels), multiple)

    def _progression(self, given: tuple[Phase, ...], lengths: list[int], multiple: int) -> Progression:
        built = [phase.build(epochs) for phase, epochs in zip(given, lengths, strict=True)]
        return Progression(self._base, tuple(built), rounding=self.rounding, batch_multiple=multiple)

    def _of_ramp(self, ramp: Ramp, stride_px: int, multiple: int, epochs: int | None) -> Progression:
        begin_epoch, end_epoch = ramp.span("ramp", epochs)
        built = Progression.ramp(
            self._base,
            ramp.start_px,
            ramp.end_px,
            begin_epoch=begin_epoch,
            end_epoch=end_epoch,
            step_px=ramp.step_px or stride_px,
            rounding=self.rounding,
            batch_multiple=multiple,
        )
        return replace(built, phases=tuple(replace(phase, batch_size=ramp.batch_size) for phase in built.phases))

    def _of_shift(self, shift: Shift, multiple: int, epochs: int | None) -> Progression:
        begin_epoch, end_epoch = shift.span("shift", epochs)
        return Progression.shift(
            self._base,
            shift.start,
            shift.end,
            shift.mode,
            begin_epoch=begin_epoch,
            end_epoch=end_epoch,
            stages=shift.stages,
            share_of=shift.share_of,
            draw=shift.draw,
            rounding=self.rounding,
            batch_multiple=multiple,
        )


Regime = Annotated[FixedRegime | MixedRegime | TableRegime | ProgressiveRegime, Field(discriminator="mode")]
