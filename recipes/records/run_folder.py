"""A run's folder: its place, its files, its newest complete checkpoint, its weights and their recipe."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.schema import Recipe

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
DATA_FILE = "data.json"
RECORD_FILE = "record.json"
CHECKPOINT_FOLDER = "checkpoints"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
#: Batch-norm statistics by image size.
STATISTICS_FILE = "batch_norm.pt"
BATCH_LOGS = "batches-rank*.csv"
#: The id of the run at Weights & Biases.
WANDB_ID_FILE = "wandb-id.txt"

_NAME = re.compile(r"ep(\d+)-ba(\d+)\.pt")


def run_folder(recipe: Recipe) -> Path:
    """The folder of a run's files."""
    return Path(recipe.output.folder) / recipe.name


def saved_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in the order of their steps."""
    found = [path for path in folder.glob("ep*-ba*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: epoch_and_step(path)[::-1])


def epoch_and_step(checkpoint: Path) -> tuple[int, int]:
    """Return the whole epochs and the steps after which a checkpoint was saved, by its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1]), int(match[2])


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None."""
    for path in reversed(saved_checkpoints(folder)):
        if zipfile.is_zipfile(path):
            return path
        log.warning("%s is damaged; an older checkpoint is used if there is one", path)
    return None


def find_weights(checkpoint: Path) -> Path:
    """Return the file of weights for a path: itself, or the last weights in a run's folder.

    Raises:
        ValueError: a path that does not exist, or a folder without weights.
    """
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.exists():
        raise ValueError(f"{checkpoint}: no such file or folder")
    final, latest = checkpoint / WEIGHTS_FILE, latest_checkpoint(checkpoint / CHECKPOINT_FOLDER)
    if not final.is_file() and latest is None:
        raise ValueError(
            f"{checkpoint} is not a run's folder with weights: it has neither {WEIGHTS_FILE} nor a checkpoint "
            f"{CHECKPOINT_FOLDER}/ep*-ba*.pt"
        )
    if latest is None:
        return final
    # A run that is being extended has checkpoints newer than its first final weights.
    extended = final.is_file() and latest.stat().st_mtime > final.stat().st_mtime
    return final if final.is_file() and not extended else latest


def find_recipe(weights: Path) -> Path | None:
    """Return the recipe of the run that wrote the weights: beside the file or one folder up; None if there is none."""
    folder = weights.absolute().parent
    return next((path for path in (folder / RECIPE_FILE, folder.parent / RECIPE_FILE) if path.is_file()), None)


def recipe_beside(weights: Path, items: Sequence[str]) -> Recipe:
    """Return the recipe of the run that wrote the weights with items applied, or of the items alone without one.

    Raises:
        ValueError: neither a run's recipe nor items, or a recipe that is not valid.
    """
    own_recipe = find_recipe(weights)
    if own_recipe is None and not items:
        raise ValueError(
            f"there is no recipe.yaml beside {weights} or one folder up; give the recipe after the checkpoint, for "
            "instance cifar10/resnet20"
        )
    return compose([*([str(own_recipe)] if own_recipe else []), *items])
