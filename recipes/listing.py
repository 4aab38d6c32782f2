"""``mixsize recipes``: what comes with the package."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mixsize.recipes.compose import packaged_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Return what prints the names, one a line."""
    names = packaged_recipes()

    def show() -> int:
        print("\n".join(names))
        return 0

    return show
