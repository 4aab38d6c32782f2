"""``mixsize eval``: its options, without the imports that evaluating takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mixsize.recipes.commands.arguments import add_checkpoint, add_imports, import_modules, parse_sizes
from mixsize.recipes.records.run_folder import find_weights, recipe_beside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize eval``."""
    add_checkpoint(parser)
    parser.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="START:STOP:STEP in pixels, STOP included, or sizes separated by commas, or both; by default 32:416:32 "
        "for centre crops and else the recipe's evaluation.sizes",
    )
    parser.add_argument(
        "--no-calibrate",
        dest="calibrate",
        action="store_false",
        help="leave out the accuracy with batch norm calibrated at each size; data.train need not exist then",
    )
    parser.add_argument(
        "--calibration-batches",
        type=int,
        metavar="N",
        help="batches of training images that calibrate a size; by default the recipe's calibration.batches",
    )
    parser.add_argument(
        "--per-class", action="store_true", help="also count by class, and print the worst classes at the base size"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the record (JSON), the CSV file and the plot go; by default eval/ in the run's folder, or "
        "eval/CHECKPOINT/ here for other files",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORD",
        help="records of other evaluations to draw into the same plot",
    )
    add_imports(parser)


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read and check everything; the function returned evaluates."""
    recipe_beside(find_weights(args.checkpoint), args.items)
    import_modules(args.imports)
    # These imports take seconds, which --help and a mistake in the recipe need not wait for.
    from mixsize.recipes.commands import evaluate

    return evaluate.prepare(args)
