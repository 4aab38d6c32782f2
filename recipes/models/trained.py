"""A network with weights from a file, and the recipe of these weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import create_network
from mixsize.recipes.models.weights import find_recipe, load_weights, read_weights


def recipe_for(weights: Path, items: Sequence[str]) -> schema.Recipe:
    """Return the recipe of the run that wrote the weights with items applied, or of the items alone without one.

    Raises:
        ValueError: neither a run's recipe nor items, or a recipe that is not valid.
    """
    own_recipe = find_recipe(weights)
    if own_recipe is None and not items:
        raise ValueError(
            f"there is no recipe.yaml beside {weights} or one folder up; give the recipe after the checkpoint, for "
            "instance cifar10/resnet20"
        )
    return compose([*([str(own_recipe)] if own_recipe else []), *items])


def trained_network(recipe: schema.Recipe, weights: Path, num_classes: int) -> nn.Module:
    """Return the recipe's network on the CPU, with the weights of a file instead of its initial ones.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file without weights, or with the weights of another network.
    """
    model = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
    network = create_network(model, num_classes)
    load_weights(network, read_weights(weights), weights, model.name)
    return network
