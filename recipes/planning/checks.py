"""The checks of a recipe's sizes, batches, phases and optimiser before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.plan import check_plannable
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.models.drops import drop_setters
from mixsize.recipes.models.network import network_stride
from mixsize.recipes.models.optimizer import build_optimizer
from mixsize.recipes.planning.regimes import build_regime, check_reached
from mixsize.recipes.planning.schedule import build_schedule, schedule_of_run

if TYPE_CHECKING:
    from mixsize.recipes.planning.costs import Costs


def check_recipe(recipe: Recipe, costs: Costs, images: int, ranks: int) -> Regime | Progression:
    """Return the regime of a recipe, after the checks of training that need no data file.

    Args:
        recipe: the recipe.
        costs: of its network.
        images: in the training data.
        ranks: number of processes.

    Raises:
        ValueError: training would refuse the recipe; in the same words.
    """
    stride_px = network_stride(costs.network)
    regime = build_regime(recipe, stride_px, ranks)
    check_evaluation_stride(recipe, stride_px)
    costs.check([*(choice.size_px for part in regime.regimes for choice in part.choices), *recipe.evaluation.sizes])
    drop_setters(costs.network, recipe.model, regime)
    check_plannable(regime, images, world_size=ranks)
    check_reached(recipe, regime, images)
    build_optimizer(recipe.optimizer, costs.network, regime)
    if recipe.duration[1] == "sec":
        build_schedule(recipe, 1.0)
    else:
        schedule_of_run(recipe, regime, images)
    return regime


def check_evaluation_stride(recipe: Recipe, stride_px: int) -> None:
    """Refuse evaluation sizes that are not multiples of the network's stride, unless ``regime.stride`` is given.

    Raises:
        ValueError: names the size.
    """
    try:
        check_stride(recipe.evaluation.sizes, 1 if recipe.regime.stride else stride_px, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"evaluation.sizes: {error}") from error
