"""The regime of a recipe."""

from __future__ import annotations

from mixsize.algorithms.regime import Base, Choice, Regime, check_stride
from mixsize.recipes import schema


def build_regime(recipe: schema.Recipe, stride_px: int, ranks: int) -> Regime:
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
        check_stride([choice.size_px for choice in regime.choices], stride_px, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
    return regime
