"""From a folder of images and a timm model to a recipe with reasons, and its training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.commands import train
from mixsize.recipes.config import yamltext
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.models.network import planned_network
from mixsize.recipes.planning.first_recipe import Chosen, Images, choose
from mixsize.system.files import write_text
from mixsize.system.machine import bfloat16_instructions


def prepare(args: argparse.Namespace, name: str, file: Path) -> Callable[[], int]:
    """Convert the images, choose the recipe of a name and write it to a file; the function returned trains it."""
    data = _converted(args.images, Path("data") / name)
    recipe, text = make_recipe(name, args.model, data, args.length, pretrained=args.pretrained)
    write_text(file, text)
    print(f"{text}\nrecipe: {file}")
    go_on = [str(file), *(part for module in args.imports for part in ("--import", module))]
    if not args.train:
        print(f"train it with: mixsize train {' '.join(go_on)}")
        return lambda: 0
    return train.prepare(recipe, go_on)


def make_recipe(
    name: str, model: str, data: Sequence[Path], length: str, *, pretrained: bool = False
) -> tuple[Recipe, str]:
    """Choose a recipe.

    Args:
        name: of the run.
        model: timm name.
        data: the training and the evaluation file.
        length: ``max_duration``.
        pretrained: start from timm's weights.

    Returns:
        The recipe, and its YAML with a comment for each reason.

    Raises:
        ValueError: an unknown model, or images that it cannot train on.
    """
    train = Beton.open(data[0])
    sides = np.minimum(train.heights, train.widths)
    one_size = len({*map(int, train.heights)}) == len({*map(int, train.widths)}) == 1
    images = Images(train.num_samples, int(np.median(sides)), one_size)
    chosen = [
        Chosen("name", name),
        Chosen("max_duration", length),
        Chosen("model.name", model),
        Chosen("model.pretrained", pretrained),
        Chosen("data.train", str(data[0])),
        Chosen("data.eval", str(data[1])),
    ]
    # A network needs a recipe, and the recipe's sizes need the network.
    draft = compose(["demo", f"model.name={model}", "model.kwargs={}", f"model.num_classes={train.num_classes}"])
    chosen += choose(
        planned_network(draft),
        model,
        images,
        on_gpu=torch.cuda.is_available(),
        pretrained=pretrained,
        instructions=bfloat16_instructions(),
    )
    return compose([f"{one.key}={_flow(one.value)}" for one in chosen]), _yaml(chosen)


def _converted(source: str, folder: Path) -> list[Path]:
    """The training and the evaluation file of a source, written where they are missing."""
    if (folder / "train.beton").exists():
        print(f"images: {folder}, converted before")
    else:
        convert_splits(source, folder)
    others = [path for path in sorted(folder.glob("*.beton")) if path.stem != "train"]
    if not (folder / "train.beton").exists() or not others:
        raise ValueError(f"{source} needs a folder train and one named test, val or valid, to measure accuracy on")
    return [folder / "train.beton", others[0]]


def _yaml(chosen: Sequence[Chosen]) -> str:
    """The values as nested sections; reasons are comments."""
    tree: dict[str, Any] = {}
    for one in chosen:
        *sections, key = one.key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = one
    return "".join(f"{line}\n" for line in _lines(tree, ""))


def _lines(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for key, node in tree.items():
        if isinstance(node, dict):
            yield f"{indent}{key}:"
            yield from _lines(node, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_flow(node.value)}" + (f"  # {node.reason}" if node.reason else "")


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and yamltext.load(value) == value:
        return value
    return json.dumps(value)
