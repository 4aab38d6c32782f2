"""What the data files of a recipe say before training, as far as they exist on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixsize.algorithms.regime.plan import plan_evaluation
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.policy import check_stored_sizes
from mixsize.recipes.build.data import build_augment, check_same_classes, count_classes
from mixsize.recipes.config.schema import PadCrop, Recipe


@dataclass(frozen=True)
class KnownData:
    """A recipe with what its data files say.

    Attributes:
        recipe: with the number of images and of classes of the training file, if it exists.
        train: the training file; None if it does not exist.
        evaluation: the evaluation file; None if it does not exist.
    """

    recipe: Recipe
    train: Beton | None
    evaluation: Beton | None


def known_data(recipe: Recipe, ranks: int) -> KnownData:
    """Open and check the data files that exist.

    Args:
        recipe: the recipe.
        ranks: number of processes.

    Raises:
        ValueError: training would refuse the files; in the same words.
    """
    train, evaluation = (
        Beton.open(path) if Path(path).exists() else None for path in (recipe.data.train, recipe.data.eval)
    )
    if train and evaluation:
        check_same_classes(train, evaluation)
    if train:
        if isinstance(recipe.data.augment, PadCrop):
            check_stored_sizes(build_augment(recipe.data.augment), train)
        classes = count_classes(recipe, *(file for file in (train, evaluation) if file))
        known = {"train_images": train.num_samples, "classes": classes}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=known)})
    if evaluation:
        plan_evaluation(evaluation.num_samples, recipe.evaluation.sizes[0], 1, world_size=ranks)
    return KnownData(recipe, train, evaluation)
