"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse


def add_items(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The items that a recipe is composed from, read with :func:`mixsize.recipes.compose.compose`.

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
