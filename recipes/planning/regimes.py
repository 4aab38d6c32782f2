"""The regime of a recipe."""

from __future__ import annotations

from dataclasses import replace

from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base, Choice, Regime
from mixsize.recipes.config import schema


def build_regime(recipe: schema.Recipe, stride_px: int, ranks: int) -> Regime | Progression:
    """The regime of a recipe.

    Args:
        recipe: the recipe.
        stride_px: the network's stride in pixels; ``regime.stride`` takes its place where given.
        ranks: number of processes, which batches divide among.

    Raises:
        ValueError: sizes, shares or batches that cannot be; the message starts with the key.
    """
    config = recipe.regime
    base = Base(config.base.size_px, config.base.batch_size, config.base.duplicates)
    stride_px = config.stride or stride_px
    multiple = config.batch_multiple or ranks
    try:
        if isinstance(config, schema.FixedRegime):
            regime = Regime.fixed(base)
        elif isinstance(config, schema.ProgressiveRegime):
            regime = _build_progression(config, base, stride_px, multiple)
        elif isinstance(config, schema.TableRegime):
            rows = [Choice(row.size_px, row.batch_size, row.duplicates, row.share) for row in config.choices]
            regime = Regime.from_choices(base, rows, share_of=config.share_of, draw=config.draw)
        else:
            regime = Regime.from_sizes(
                config.sizes,
                base,
                config.mode,
                share_of=config.share_of,
                rounding=config.rounding,
                draw=config.draw,
                batch_multiple=multiple,
            )
        sizes = [choice.size_px for part in regime.regimes for choice in part.choices]
        check_stride(sizes, stride_px, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
    return regime


def _build_progression(config: schema.ProgressiveRegime, base: Base, stride_px: int, multiple: int) -> Progression:
    if config.ramp is not None:
        ramp = config.ramp
        progression = Progression.ramp(
            base,
            ramp.start_px,
            ramp.end_px,
            begin_epoch=ramp.begin_epoch,
            end_epoch=ramp.end_epoch,
            step_px=ramp.step_px or stride_px,
            rounding=config.rounding,
            batch_multiple=multiple,
        )
        if ramp.batch_size is None:
            return progression
        return replace(
            progression, phases=tuple(replace(phase, batch_size=ramp.batch_size) for phase in progression.phases)
        )
    assert config.phases is not None
    phases = [
        Phase(phase.size_px, phase.epochs, phase.batch_size, phase.lr_factor, phase.crop_scale)
        for phase in config.phases
    ]
    return Progression(base, tuple(phases), config.warmup_epochs, config.rounding, multiple)
