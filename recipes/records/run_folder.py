"""A run's folder: its place, its files, and its newest complete checkpoint."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path

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
