"""``mixsize train``: its options. The recipe is composed before PyTorch and Composer are imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mixsize.recipes.commands.arguments import add_imports, add_items, import_modules
from mixsize.recipes.config.compose import compose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize train``."""
    add_items(parser)
    add_imports(parser)


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose the recipe and build the run; the function returned trains it."""
    recipe = compose(args.items)
    import_modules(args.imports)
    # These imports take seconds, which a mistake in the recipe need not wait for.
    from mixsize.recipes.commands import train

    imports = [part for name in args.imports for part in ("--import", name)]
    return train.prepare(recipe, [*args.items, *imports])
