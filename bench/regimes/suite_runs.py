"""The runs of a suite: their recipes, with the length that the budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.bench.regimes.suite import Budget, Data, Suite
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.schema import MultiStep, Recipe
from mixsize.recipes.planning.regimes import build_regime, epochs_of
from mixsize.recipes.records.run_folder import run_folder

#: Longest run in epochs; a budget of pixels that needs more is a typing error.
_MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class SuiteRun:
    """One run of a suite.

    Attributes:
        suite: the suite's name.
        label: of the regime, after ``recipe/`` where the suite has several recipes.
        recipe: of the run.
        items: ``mixsize train`` composes the recipe from these.
        ranks: number of processes.
        imports: the user's modules that ``mixsize train`` imports first.
    """

    suite: str
    label: str
    recipe: Recipe
    items: tuple[str, ...]
    ranks: int
    imports: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.recipe.name

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        return run_folder(self.recipe)


def runs_of(
    suite: Suite, folder: Path, seeds: int, extra: Sequence[str] = (), imports: Sequence[str] = ()
) -> list[SuiteRun]:
    """Compose the runs of a suite, seed by seed, so that a suite that is stopped early has trained all regimes.

    Args:
        suite: the suite.
        folder: of the runs.
        seeds: runs of each recipe and regime, with seeds that count up from the recipe's.
        extra: further items for every run, applied before the suite's own settings.
        imports: the user's modules that every run imports first.

    Raises:
        ValueError: a recipe that is not valid, or that cannot follow the budget; the message names the run.
    """
    several = len(suite.recipes) > 1
    items_of = {
        f"{recipe}/{regime}" if several else regime: [*recipe_items, *regime_items, *extra]
        for recipe, recipe_items in suite.recipes.items()
        for regime, regime_items in suite.regimes.items()
    }
    for label, items in items_of.items():
        # Before the first budget of pixels, which needs PyTorch and a network.
        with naming_run(suite, label):
            compose(items)
    of_label: dict[str, list[SuiteRun]] = {}
    for label, items in items_of.items():
        with naming_run(suite, label):
            of_label[label] = _runs(suite, label, items, folder, seeds, tuple(imports))
    return [runs[index] for index in range(seeds) for runs in of_label.values()]


@contextmanager
def naming_run(suite: Suite, label: str) -> Iterator[None]:
    """Put the suite and a run's label before each line of a mistake that the block finds."""
    try:
        yield
    except ValueError as error:
        lines = [f"suite {suite.name}, {label}: {line}" for line in str(error).split("\n")]
        raise ValueError("\n".join(lines)) from error


def files_of(data: Data) -> tuple[Path, ...]:
    """The files that a suite writes."""
    return tuple(Path(data.folder) / f"{split}.beton" for split in ("train", "test"))


def _runs(
    suite: Suite, label: str, items: list[str], folder: Path, seeds: int, imports: tuple[str, ...]
) -> list[SuiteRun]:
    common = [
        *items,
        f"evaluation.sizes={list(suite.evaluation_sizes)}",
        f"output.folder={folder}",
        f"name={suite.name}-{label.replace('/', '-')}",
    ]
    first = compose(common)
    if first.output.wandb is not None and first.output.wandb.group is None:
        common.append(f"output.wandb.group={suite.name}")
    runs = []
    for seed in range(first.seed, first.seed + seeds):
        mine = [*common, f"seed={seed}", f"name={first.name}-seed{seed}"]
        mine += length_items(compose([*items, f"seed={seed}"]), suite.budget, suite.ranks)
        runs.append(SuiteRun(suite.name, label, compose(mine), tuple(mine), suite.ranks, imports))
    return runs


def length_items(recipe: Recipe, budget: Budget, ranks: int) -> list[str]:
    """Items that give a recipe the length of a budget.

    Milestones of a multistep schedule keep their place in the run, rounded to whole epochs; other schedules follow the
    run's length by themselves. Phases of a progressive regime keep their epochs, and the last one lasts to the end.

    Args:
        recipe: with its own length.
        budget: of each run.
        ranks: processes of the run; batches are multiples of it.

    Raises:
        ValueError: a schedule that cannot follow.
    """
    if budget.seconds is not None:
        return [f"max_duration={budget.seconds}sec"]
    if budget.epochs is not None:
        duration = f"{budget.epochs}ep"
        if not isinstance(recipe.schedule, MultiStep) or duration == recipe.max_duration:
            return [f"max_duration={duration}"]
        return [f"max_duration={duration}", *_milestones(recipe, float(budget.epochs), ranks)]
    assert budget.pixels is not None
    regime, images = _regime(recipe, ranks), training_images(recipe)
    steps, epochs = steps_of_pixels(regime, images, recipe.seed, budget.pixels)
    items = [f"max_duration={steps}ba"]
    return [*items, *_milestones(recipe, epochs, ranks)] if isinstance(recipe.schedule, MultiStep) else items


def steps_of_pixels(regime: Regime | Progression, images: int, seed: int, pixels: float) -> tuple[int, float]:
    """Length of training for a budget of pixels.

    Args:
        regime: of the run.
        images: number of training images.
        seed: of the run.
        pixels: the budget, the sum of S^2 * B * D over the steps.

    Returns:
        Steps up to the first at which the budget is reached, and the same in epochs.

    Raises:
        ValueError: the budget is not reached in 10,000 epochs.
    """
    spent, steps = 0.0, 0
    for epoch in range(_MOST_EPOCHS):
        plan = plan_epoch(regime.at_epoch(epoch), images, seed, epoch)
        cost = plan.size_px.astype(np.int64) ** 2 * plan.batch_size * plan.duplicates
        reached = spent + np.cumsum(cost)
        if reached[-1] >= pixels:
            inside = int(np.searchsorted(reached, pixels)) + 1
            return steps + inside, epoch + inside / len(plan)
        spent, steps = float(reached[-1]), steps + len(plan)
    raise ValueError(f"budget.pixels is {pixels:g}, which {_MOST_EPOCHS:,} epochs do not reach")


def training_images(recipe: Recipe) -> int:
    """Number of training images: the data file's where it exists, else the recipe's.

    Raises:
        ValueError: neither is known.
    """
    if Path(recipe.data.train).is_file():
        with Beton.open(recipe.data.train) as train:
            return train.num_samples
    if recipe.data.train_images is None:
        raise ValueError(
            f"data.train_images is not given and {recipe.data.train} does not exist; a budget of pixels needs the "
            "number of training images"
        )
    return recipe.data.train_images


def _milestones(recipe: Recipe, epochs: float, ranks: int) -> list[str]:
    schedule = recipe.schedule
    assert isinstance(schedule, MultiStep)
    own = epochs_of(recipe, _regime(recipe, ranks), training_images(recipe)) if recipe.duration[1] == "ba" else None
    factor = epochs / (own or recipe.duration[0])
    moved = [max(1, round(milestone * factor)) for milestone in schedule.milestones]
    if any(later <= earlier for earlier, later in pairwise(moved)) or moved[-1] >= math.ceil(epochs):
        raise ValueError(
            f"the budget comes to {epochs:.3g} epochs, in which the schedule's milestones {list(schedule.milestones)} "
            f"would become {moved}; give a larger budget or another schedule, for instance schedule.name=one_cycle"
        )
    return [f"schedule.milestones={moved}"]


def _regime(recipe: Recipe, ranks: int) -> Regime | Progression:
    # PyTorch takes seconds to import, which a mistake in a recipe need not wait for.
    from mixsize.recipes.models.network import network_stride, planned_network

    return build_regime(recipe, network_stride(planned_network(recipe)), ranks)
