"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_items(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The items that a recipe is composed from, read with :func:`mixsize.recipes.config.compose.compose`.

    Args:
        parser: takes them.
        optional: none need be given.
    """
    parser.add_argument(
        "items",
        nargs="*" if optional else "+",
        metavar="ITEM",
        help="packaged recipe (cifar10/resnet44, regime/s28_bplus), path of a YAML file, or dotted.key=value; "
        "later items win",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Trained weights, as ``find_weights`` takes them, and items on top of their recipe."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="folder of a run (runs/NAME), a checkpoint of it, or any PyTorch or safetensors file of weights",
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="ITEM",
        help="as for mixsize train; applied on top of the run's own recipe.yaml, where there is one",
    )
