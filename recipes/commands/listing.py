"""``mixsize recipes``: list the packaged recipes with their titles, print one, or explain a key."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import resources

from mixsize.recipes.config.compose import packaged_recipes
from mixsize.recipes.config.errors import nearest
from mixsize.recipes.config.reference import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize recipes``."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="print this packaged recipe (cifar10/resnet44), or values, default and meaning of this key (optimizer.lr, "
        "regime.base); by default all packaged recipes are listed",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Find what is asked for; the function returned prints it.

    Raises:
        ValueError: no recipe or key has this name.
    """
    text = _listing() if args.name is None else _about(args.name)

    def show() -> int:
        print(text.rstrip("\n"))
        return 0

    return show


def recipe_title(name: str) -> str:
    """The first line of a packaged recipe, a comment."""
    return _recipe(name).partition("\n")[0].removeprefix("#").strip()


def _listing() -> str:
    titles = {name: recipe_title(name) for name in packaged_recipes()}
    width = max(map(len, titles))
    return "\n".join(f"{name:<{width}}  {title}" for name, title in titles.items())


def _about(name: str) -> str:
    names = packaged_recipes()
    if name in names:
        return _recipe(name)
    if "/" not in name:
        return explain(name)
    near = nearest(name, names)
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"{name}: no packaged recipe has this name{hint}")


def _recipe(name: str) -> str:
    return resources.files("mixsize.recipes").joinpath(f"{name}.yaml").read_text("utf-8")
