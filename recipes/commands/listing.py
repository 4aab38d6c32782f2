"""``mixsize recipes``: list the packaged recipes with their titles."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import resources

from mixsize.recipes.config.compose import packaged_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read names and titles; the function returned prints one recipe a line."""
    titles = {name: recipe_title(name) for name in packaged_recipes()}
    width = max(map(len, titles))

    def show() -> int:
        for name, title in titles.items():
            print(f"{name:<{width}}  {title}")
        return 0

    return show


def recipe_title(name: str) -> str:
    """The first line of a packaged recipe, a comment."""
    with resources.files("mixsize.recipes").joinpath(f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
