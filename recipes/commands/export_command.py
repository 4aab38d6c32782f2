"""``mixsize export``: its options, without the imports that measuring and writing take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mixsize.recipes.commands.arguments import add_checkpoint, parse_sizes
from mixsize.recipes.records.run_folder import find_weights, recipe_beside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize export``."""
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="sizes to measure batch norm at, as for mixsize eval; by default the recipe's evaluation.sizes",
    )
    parser.add_argument(
        "--no-calibrate",
        dest="calibrate",
        action="store_false",
        help="leave out batch-norm statistics by size; data.train need not exist then",
    )
    parser.add_argument(
        "--onnx",
        type=int,
        metavar="S",
        help="also write model-S.onnx for images of S px, with batch norm measured at S where it is among the sizes",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read and check everything; the function returned measures and writes."""
    if args.out.exists():
        raise ValueError(f"--out: {args.out} exists")
    recipe = recipe_beside(find_weights(args.checkpoint), args.items)
    if args.onnx is not None:
        import_module("onnxscript")  # torch.onnx needs it.
    # These imports take seconds, which --help and a mistake in the recipe need not wait for.
    from mixsize.recipes.commands import export

    return export.prepare(args, args.sizes or recipe.evaluation.sizes)
