"""The network of a recipe: created, with weights from a file, and the image sizes that it takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import nn

from mixsize.recipes.config.schema import Model, Recipe
from mixsize.recipes.models import amoebanet, networks
from mixsize.recipes.models.hub_config import adopt_config, find_config
from mixsize.recipes.models.weights import load_weights, read_weights
from mixsize.recipes.records.run_folder import recipe_beside

# timm's arguments that make such a network take other sizes, the preferred one first.
_FLEXIBLE = {"dynamic_img_size": True, "strict_img_size": False}
# Networks that accept timm's img_size and ignore it.
_IGNORE_IMG_SIZE = frozenset({"EfficientFormer"})


def create_network(model: Model, num_classes: int) -> torch.nn.Module:
    """Return the timm network of a recipe.

    Raises:
        ValueError: an unknown name, arguments that the network does not take, or a checkpoint of another network.
    """
    assert networks.__all__  # Importing them registers the CIFAR networks with timm.
    assert amoebanet.__all__
    architecture = model.name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists the names."
        raise ValueError(
            f"model.name: unknown timm model {model.name!r}; {hint} For a network of your own, give each command the "
            "module that registers it: --import MODULE"
        )
    if model.checkpoint is not None and not Path(model.checkpoint).is_file():
        raise ValueError(f"model.checkpoint: no file {model.checkpoint}")
    try:
        kwargs: dict[str, Any] = {"pretrained": model.pretrained, "num_classes": num_classes, **model.kwargs}
        network = timm.create_model(model.name, **kwargs)
    except TypeError as error:
        raise ValueError(f"model.kwargs: {model.name} cannot be made with {model.kwargs}: {error}") from error
    if model.checkpoint is not None:
        path = Path(model.checkpoint)
        try:
            load_weights(network, read_weights(path), path, model.name, other_classes=True)
            adopt_config(network, path)
        except ValueError as error:
            raise ValueError(f"model.checkpoint: {error}") from error
    return network


def network_stride(module: torch.nn.Module) -> int:
    """Return the input pixels for one position of the last feature map; 1 if timm does not know it.

    The stride of a vision transformer is the side of its patches.
    """
    info = getattr(module, "feature_info", None)
    reductions = [stage["reduction"] for stage in info or () if "reduction" in stage]
    if reductions:
        return max(reductions)
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", 1)
    return patch if isinstance(patch, int) else max(patch)


def planned_network(recipe: Recipe) -> nn.Module:
    """Return the network without weights, on the meta device; with two classes if the recipe does not give a number."""
    model = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
    with torch.device("meta"):
        return create_network(model, _num_classes(recipe))


def check_checkpoint(recipe: Recipe) -> None:
    """Refuse a ``model.checkpoint`` that training would refuse, in the same words; see :func:`create_network`."""
    if recipe.model.checkpoint is not None:
        create_network(recipe.model, _num_classes(recipe))


def recipe_for(weights: Path, items: Sequence[str]) -> Recipe:
    """Return the recipe of weights; see :func:`~mixsize.recipes.records.run_folder.recipe_beside`.

    Where a ``config.json`` says how the weights' images were prepared, ``data.normalization`` is ``network``.

    Raises:
        ValueError: neither a run's recipe nor items, or a recipe that is not valid.
    """
    recipe = recipe_beside(weights, items)
    if find_config(weights) is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"normalization": "network"})})


def trained_network(recipe: Recipe, weights: Path, num_classes: int) -> nn.Module:
    """Return the recipe's network on the CPU, with the weights of a file instead of its initial ones.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file without weights, or with the weights of another network.
    """
    model = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
    network = create_network(model, num_classes)
    load_weights(network, read_weights(weights), weights, model.name)
    adopt_config(network, weights)
    return network


def check_sizes(module: nn.Module, name: str, sizes_px: Iterable[int]) -> None:
    """Refuse image sizes that the network cannot take.

    Runs a forward pass at each size on the meta device: at most half a second for common networks, without memory or
    random numbers. timm's mark `fixed_input_size` decides only for a network that fails on the meta device even at its
    own size, because timm marks networks that take any size too (XCiT, Twins, SwiftFormer).

    Args:
        module: a timm network on any device, the meta device included; it is not changed.
        name: of the network, for messages.
        sizes_px: sides of the square images in pixels.

    Raises:
        ValueError: a size that the network cannot take; the message gives the reason and the timm argument that helps.

    Example:
        >>> check_sizes(timm.create_model("resnet18"), "resnet18", [64, 96])
        >>> check_sizes(timm.create_model("vit_tiny_patch16_224"), "vit_tiny_patch16_224", [192, 224])
        Traceback (most recent call last):
            ...
        ValueError: vit_tiny_patch16_224 takes 224 px only, not 192 px; model.kwargs: {dynamic_img_size: true} lifts ...
    """
    sizes = sorted(set(sizes_px))
    config = get_model_input_config(module)
    _, *own = config["input_size"]
    problems = {size: problem for size in sizes if (problem := _forward_problem(module, [size, size]))}
    if problems and _forward_problem(module, own):
        problems = {size: "" for size in sizes if config["fixed_input_size"] and [size, size] != own}
    if not problems:
        return
    if config["fixed_input_size"]:
        raise ValueError(_fixed_message(module, name, own, sizes, list(problems)))
    refused = ", ".join(map(str, problems))
    raise ValueError(f"{name} cannot take {refused} px: {problems[min(problems)]}; its own size is {_side(own)} px")


def _num_classes(recipe: Recipe) -> int:
    return recipe.model.num_classes or recipe.data.classes or 2


def _fixed_message(module: nn.Module, name: str, own: list[int], sizes: list[int], refused: list[int]) -> str:
    arguments = _arguments(type(module))
    helps = [f"{{{key}: {str(value).lower()}}}" for key, value in _FLEXIBLE.items() if key in arguments][:1]
    if len(sizes) == 1 and "img_size" in arguments and type(module).__name__ not in _IGNORE_IMG_SIZE:
        helps.append(f"{{img_size: {sizes[0]}}}")
    if helps:
        advice = f"model.kwargs: {' or '.join(helps)} lifts this"
    else:
        advice = "timm has no argument that lifts this; train at one size or choose another network"
    return f"{name} takes {_side(own)} px only, not {', '.join(map(str, refused))} px; {advice}"


def _side(size: list[int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


def _arguments(network: type) -> set[str]:
    """Names that a constructor takes, with those that it passes on to its base classes."""
    names: set[str] = set()
    for cls in network.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names.update(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break
    return names


def _forward_problem(module: nn.Module, size: list[int]) -> str:
    """Return why the network cannot take two images of this height and width; "" if it can."""
    channels, *own = get_model_input_config(module)["input_size"]
    if hasattr(module, "img_size_scaled") and size != own:
        # CrossViT: training at any size would have the cost and the effect of its own size.
        return "it resizes its images to its own size"
    tensors = chain(module.named_parameters(), module.named_buffers())
    meta = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors}
    images = torch.empty(2, channels, *size, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(module, meta, (images,))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        words = str(error).strip().split("\n")[0]
        return f"its forward pass ends in {type(error).__name__}" + (f" ({words})" if words else "")
    return ""
