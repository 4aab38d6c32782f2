"""How a run's images are prepared: the values that a recipe leaves to its network or to its training file."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.config import schema
from mixsize.recipes.models.hub_config import Preparation


def with_preparation(recipe: schema.Recipe, network: nn.Module, train: Beton | None) -> schema.Recipe:
    """The recipe with mean, standard deviation, crop and interpolation filled in.

    A value in the recipe stands. One that it leaves open is the network's own, from ``pretrained_cfg``: of the weights
    that it started from, else of timm's configuration, whose mean and deviation are ImageNet's for most networks. Under
    ``data.normalization: file`` mean and deviation are the training file's.

    Args:
        recipe: as written.
        network: a timm network.
        train: the training file; None where ``data.normalization`` is ``network``.

    Raises:
        ValueError: a file without mean and deviation, or a network's interpolation that the loaders do not have.
    """
    data, own = recipe.data, Preparation.model_validate(network.pretrained_cfg)
    mean, std = own.mean, own.std
    if data.normalization == "file" and not (data.mean and data.std):
        assert train is not None
        if train.info is None:
            raise ValueError(
                f"data.normalization: file, and {train.path} holds no mean and standard deviation, which mixsize "
                "convert writes; give data.mean and data.std, or data.normalization=network"
            )
        mean, std = train.info.mean, train.info.std
    filled: dict[str, Any] = {"mean": data.mean or mean, "std": data.std or std}
    for key in ("augment", "eval_transform"):
        transform = getattr(data, key)
        if isinstance(transform, schema.CenterCrop) and transform.fraction is None:
            filled[key] = transform.model_copy(update={"fraction": own.crop_pct})
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=filled),
            "evaluation": recipe.evaluation.model_copy(update={"interpolation": _interpolation(recipe, own)}),
        }
    )


def preparation_of(recipe: schema.Recipe) -> Preparation:
    """How the images of a recipe are prepared for evaluation, in timm's words; its values are filled in."""
    data, size_px = recipe.data, recipe.regime.base.size_px
    fraction = data.eval_transform.fraction if isinstance(data.eval_transform, schema.CenterCrop) else None
    return Preparation(
        mean=data.mean,
        std=data.std,
        interpolation=recipe.evaluation.interpolation,
        crop_pct=fraction or 1.0,
        crop_mode="center" if fraction else "squash",
        input_size=(3, size_px, size_px),
    )


def _interpolation(recipe: schema.Recipe, own: Preparation) -> str:
    chosen = recipe.evaluation.interpolation or own.interpolation
    if chosen not in ("bilinear", "bicubic"):
        raise ValueError(
            f"evaluation.interpolation: {recipe.model.name} was evaluated with {chosen}, which the loaders do not "
            "have; give bilinear or bicubic"
        )
    return chosen
