"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse


def add_items(parser: argparse.ArgumentParser) -> None:
    """The items that a recipe is composed from, read with :func:`mixsize.recipes.compose.compose`."""
    parser.add_argument(
        "items",
        nargs="+",
        metavar="ITEM",
        help="packaged recipe (cifar10/resnet44, regime/s28_bplus), path of a YAML file, or dotted.key=value; "
        "later items win",
    )
