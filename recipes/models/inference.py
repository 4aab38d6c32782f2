"""A trained network for inference at an image size, with the statistics of that size and the transform it expects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.recipes.models import amoebanet, networks
from mixsize.recipes.models.network import check_sizes
from mixsize.recipes.models.surgery import Surgery
from mixsize.recipes.models.weights import load_weights, read_weights
from mixsize.recipes.records.run_folder import CONFIG_FILE, RECIPE_FILE, STATISTICS_FILE, WEIGHTS_FILE


def load_at_size(folder: str | Path, size_px: int | None = None) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A network in evaluation mode, and the transform of its images.

    Batch norm has the statistics that were calibrated at the size, where the folder has them in ``batch_norm.pt``, and
    else those of training.

    Args:
        folder: of a finished run, of ``mixsize export``, or of a timm model from the Hugging Face Hub: weights and
            ``config.json``.
        size_px: image side in pixels; by default the network's own, that of the regime's base.

    Returns:
        The network, and a function from a Pillow image in RGB to a tensor ``(3, S, S)``: resized, cropped and
        normalised as in evaluation.

    Raises:
        ValueError: a folder without weights or ``config.json``, or a size that the network cannot take.

    Example:
        >>> network, transform = load_at_size("runs/demo", 12)
        >>> image = transform(Image.open("digit.png").convert("RGB"))
        >>> probabilities = network(image[None]).softmax(dim=1)
    """
    assert networks.__all__  # Importing them registers the CIFAR networks with timm.
    assert amoebanet.__all__
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; it must be the folder of a finished run or of mixsize export")
    try:
        network = _network(folder).eval()
    except (RuntimeError, FileNotFoundError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: its weights cannot be loaded: {error}") from error
    config = resolve_model_data_config(network)
    size_px = size_px or config["input_size"][-1]
    check_sizes(network, str(folder), [size_px])
    bank = size_statistics(folder)
    if size_px in bank:
        bank.load_into(network, size_px)
    # timm rounds the resized side down; evaluation here rounds it up, as torchvision's transforms of the paper do.
    resized_px = math.ceil(round(size_px / config["crop_pct"], 6))
    config |= {"input_size": (3, size_px, size_px), "crop_pct": size_px / (resized_px + 0.5)}
    return network, cast(Callable[[Any], Tensor], create_transform(**config, is_training=False))


def _network(folder: Path) -> nn.Module:
    surgery = Surgery.of_file(folder / RECIPE_FILE)
    if not surgery.algorithms:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    network = timm.create_model(f"local-dir:{folder}")
    surgery.apply(network)
    weights = folder / WEIGHTS_FILE
    load_weights(network, read_weights(weights), weights, type(network).__name__)
    return network


def class_names(network: nn.Module) -> list[str]:
    """Names of the outputs, in their order; their numbers where the network has no names."""
    config: dict[str, Any] = network.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    names = config.get("label_names") or range(int(network.num_classes))  # pyright: ignore[reportArgumentType]
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def size_statistics(folder: Path) -> StatisticsBank:
    """The batch-norm statistics in a folder of weights, by size; empty where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / STATISTICS_FILE
    return StatisticsBank.load(path) if path.is_file() else StatisticsBank()


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities of the classes ``(N, classes)`` for images ``(N, 3, S, S)``."""
    return network(images).softmax(dim=1)
