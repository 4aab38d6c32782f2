"""The network of a recipe, without its data or Trainer."""

from __future__ import annotations

import difflib
from pathlib import Path

import timm
import torch

from mixsize.recipes import networks, schema


def create_network(model: schema.Model, num_classes: int) -> torch.nn.Module:
    """The timm network of a recipe.

    Raises:
        ValueError: an unknown name, arguments that the network does not take, or a checkpoint that cannot be read.
    """
    assert networks  # Importing it registers the CIFAR networks with timm.
    architecture = model.name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise ValueError(f"model.name: unknown timm model {model.name!r}{hint}")
    if model.checkpoint is not None and not Path(model.checkpoint).is_file():
        raise ValueError(f"model.checkpoint: no file {model.checkpoint}")
    try:
        return timm.create_model(
            model.name,
            pretrained=model.pretrained,
            num_classes=num_classes,
            checkpoint_path=model.checkpoint or "",
            **model.kwargs,
        )
    except TypeError as error:
        raise ValueError(f"model.kwargs: {model.name} cannot be made with {model.kwargs}: {error}") from error


def network_stride(module: torch.nn.Module) -> int:
    """Pixels of the input to one position of the network's last feature map; 1 where timm does not know."""
    info = getattr(module, "feature_info", None)
    reductions = [stage["reduction"] for stage in info or () if "reduction" in stage]
    return max(reductions, default=1)


def planned_stride(recipe: schema.Recipe) -> int:
    """The network's stride, without allocating its weights."""
    if recipe.regime.stride is not None:
        return recipe.regime.stride
    with torch.device("meta"):
        return network_stride(
            create_network(recipe.model.model_copy(update={"pretrained": False, "checkpoint": None}), 2)
        )
