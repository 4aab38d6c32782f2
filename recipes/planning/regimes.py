"""The regime of a recipe for a network and a number of processes."""

from __future__ import annotations

from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.recipes.config.schema import Recipe


def build_regime(recipe: Recipe, stride_px: int, ranks: int) -> Regime | Progression:
    """Return the regime of a recipe.

    Args:
        recipe: the recipe.
        stride_px: the network's stride in pixels; ``regime.stride`` overrides it.
        ranks: number of processes, among which each batch is divided; ``regime.batch_multiple`` overrides it.

    Raises:
        ValueError: sizes, shares or batches that are not possible together; the message starts with ``regime:``.
    """
    try:
        regime = recipe.regime.build(stride_px, ranks)
        sizes = [choice.size_px for part in regime.regimes for choice in part.choices]
        check_stride(sizes, recipe.regime.stride or stride_px, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
    return regime
