"""The regime of a recipe for a network and a number of processes, and its epochs."""

from __future__ import annotations

import math

from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.regime.spans import Span, spans_of
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
    length, unit = recipe.duration
    try:
        regime = recipe.regime.build(stride_px, ranks, length if unit == "ep" else None)
        sizes = [choice.size_px for part in regime.regimes for choice in part.choices]
        check_stride(sizes, recipe.regime.stride or stride_px, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
    return regime


def spans_of_run(recipe: Recipe, regime: Regime | Progression, images: int) -> list[Span]:
    """The steps of a recipe's run, whose length is in epochs or in steps.

    Raises:
        ValueError: a run of more than a million epochs, or too few images.
    """
    length, unit = recipe.duration
    assert unit != "sec"
    try:
        return list(spans_of(regime, images, recipe.seed, **{"epochs" if unit == "ep" else "steps": length}))
    except ValueError as error:
        raise ValueError(f"max_duration is {recipe.max_duration}: {error}") from error


def epochs_of(recipe: Recipe, regime: Regime | Progression, images: int) -> float:
    """The length of a run in epochs; a last epoch that is cut short counts as a fraction.

    Args:
        recipe: its length is in epochs or in steps.
        regime: the regime.
        images: in the training data.
    """
    return math.fsum(span.epochs for span in spans_of_run(recipe, regime, images))


def check_reached(recipe: Recipe, regime: Regime | Progression, images: int) -> None:
    """Refuse phases that begin only after the run's end.

    Raises:
        ValueError: names the first such phase.
    """
    if recipe.duration[1] == "sec" or not isinstance(regime, Progression):
        return
    reached = spans_of_run(recipe, regime, images)[-1].regime + 1
    if reached < len(regime.phases):
        raise ValueError(
            f"regime: the phase at {regime.phases[reached].sizes_in_words} begins at epoch {regime.starts[reached]}, "
            f"which a run of max_duration {recipe.max_duration} does not reach; train longer, or give the phases as "
            "fractions of the run (regime.phases[].fraction, or end_fraction of a ramp or a shift)"
        )
