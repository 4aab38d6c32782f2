"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

_SIZES = re.compile(r"(\d+)(?::(\d+):(\d+))?")


def add_items(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the items of a recipe; :func:`mixsize.recipes.config.compose.compose` reads them.

    Args:
        parser: the command's.
        optional: accept no item at all.
    """
    parser.add_argument(
        "items",
        nargs="*" if optional else "+",
        metavar="ITEM",
        help="packaged recipe (cifar10/resnet44, regime/s28_bplus), path of a YAML file, or dotted.key=value; "
        "later items win",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add a checkpoint, which ``find_weights`` looks up, and items on top of its recipe."""
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


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Add modules of the user's own; :func:`import_modules` imports them."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a Python module of your own first, found here or on PYTHONPATH, which registers networks with "
        "timm; may be given several times",
    )


def import_modules(names: Sequence[str]) -> None:
    """Import modules, which may lie in the working directory.

    Raises:
        ValueError: there is no module of a name. Errors inside of a module pass.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:  # noqa: PERF203 (each module has its own reason)
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(f"--import {name}: no module {error.name!r} here or on PYTHONPATH") from error


def parse_sizes(text: str) -> list[int]:
    """Read image sizes in pixels: ``32:416:32``, ``160,224,288`` or both, separated by commas.

    Returns:
        Each size once, ascending.

    Raises:
        argparse.ArgumentTypeError: another form, a size below 1, or a range that does not end in its stop.
    """
    sizes: set[int] = set()
    for part in text.split(","):
        match = _SIZES.fullmatch(part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is neither a number of pixels nor START:STOP:STEP, as in 32:416:32"
            )
        start, stop, step = (int(number) if number else None for number in match.groups())
        assert start is not None
        if stop is None or step is None:
            stop, step = start, 1
        if start < 1 or step < 1 or stop < start:
            raise argparse.ArgumentTypeError(f"{part.strip()!r}: needs START and STEP of at least 1 and STOP >= START")
        if (stop - start) % step:
            last = stop - (stop - start) % step
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} does not end in {stop}: write {start}:{last}:{step} or {start}:{last + step}:{step}"
            )
        sizes.update(range(start, stop + 1, step))
    return sorted(sizes)
