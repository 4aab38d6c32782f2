"""Where a run starts: anew, or where one of its name stood when it stopped."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.pipeline.planned import differences
from mixsize.recipes.config import schema
from mixsize.recipes.records.run_folder import clear_checkpoints, latest_checkpoint
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.run_record import RunRecord, read_record
from mixsize.recipes.records.run_folder import BATCH_LOGS, CHECKPOINT_FOLDER, DATA_FILE, RECIPE_FILE, RECORD_FILE, WANDB_ID_FILE, WEIGHTS_FILE

# What may change while a run is stopped: nothing that decides its batches or its weights.
_FREE_SECTIONS = ("output", "loader", "evaluation", "execution")
_FREE_KEYS = ("name", "device", "progress_bar", "data.train", "data.eval", "data.train_images", "data.classes")
# Schedules that do not look at the run's length, so that it may be extended.
_OPEN_ENDED = ("multistep", "constant")


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        recipe: with what an earlier start settled filled in.
        checkpoint: the training state to go on from, or None to start anew.
    """

    recipe: schema.Recipe
    checkpoint: Path | None


def find_start(recipe: schema.Recipe, folder: Path, ranks: int) -> Start:
    """Look for a stopped run in ``folder``.

    Args:
        recipe: what is asked for.
        folder: the run's own.
        ranks: processes of this start.

    Raises:
        ValueError: the folder holds checkpoints of another recipe; the message names what differs.
    """
    checkpoint = None if recipe.output.restart else latest_checkpoint(folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        return Start(_settle(recipe, ranks), None)
    saved = compose([str(folder / RECIPE_FILE)])
    # Unless it is asked for otherwise, batches stay multiples of the ranks that the run began with.
    recipe = _settle(recipe, saved.regime.batch_multiple or ranks)
    changed = _changes(saved, recipe)
    if changed:
        raise ValueError(
            f"{folder} holds a stopped run of another recipe: {'; '.join(changed)}. Give another name, or "
            "output.restart=true to remove its checkpoints and start anew"
        )
    return Start(recipe, checkpoint)


def check_ranks(regime: Regime | Progression, ranks: int) -> None:
    """Refuse to go on with a number of ranks that cannot share the batches that the run began with.

    Raises:
        ValueError: naming the first such batch, and numbers of ranks that can.
    """
    batches = [choice.batch_size for part in regime.regimes for choice in part.choices]
    uneven = [batch for batch in batches if batch % ranks]
    if uneven:
        common = math.gcd(*batches)
        fitting = ", ".join(str(number) for number in range(1, min(common, 64) + 1) if common % number == 0)
        raise ValueError(
            f"the stopped run has batches of {uneven[0]} images, which {ranks} ranks cannot share evenly; go on with "
            f"{fitting} ranks, or give another name"
        )


def check_data(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on with other training images than the run began with.

    Raises:
        ValueError: naming what differs.
    """
    file = folder / DATA_FILE
    if not file.exists():
        return  # The loader's own state, in the checkpoint, is compared all the same.
    changed = differences(json.loads(file.read_text(encoding="utf-8")), identity)
    if changed:
        raise ValueError(f"{folder} holds a stopped run on other data: {'; '.join(changed)}")


def clear(folder: Path) -> None:
    """Remove what an earlier run of this name left, but for files that are not ours."""
    clear_checkpoints(folder / CHECKPOINT_FOLDER)
    logs = [path.name for path in folder.glob(BATCH_LOGS)]
    for name in (*logs, RECORD_FILE, WEIGHTS_FILE, DATA_FILE, RECIPE_FILE, WANDB_ID_FILE):
        (folder / name).unlink(missing_ok=True)


def finished_record(recipe: schema.Recipe, folder: Path) -> RunRecord | None:
    """The record of a run that has already ended under this recipe, or None.

    Raises:
        ValueError: a file in the record's place that is none.
    """
    file = folder / RECORD_FILE
    if recipe.output.restart or not file.exists():
        return None
    record = read_record(file)
    trained, asked = dict(record.recipe), recipe.model_dump(mode="json")
    # A record says how many ranks its batches are multiples of, which a recipe may leave open.
    if asked["regime"]["batch_multiple"] is None:
        asked["regime"]["batch_multiple"] = trained["regime"].get("batch_multiple")
    for values in (asked, trained):
        values.pop("output", None)
        values.pop("execution", None)
        values.pop("progress_bar", None)
    return None if differences(trained, asked) else record


def _settle(recipe: schema.Recipe, multiple: int) -> schema.Recipe:
    if recipe.regime.batch_multiple is not None:
        return recipe
    regime = recipe.regime.model_copy(update={"batch_multiple": multiple})
    return recipe.model_copy(update={"regime": regime})


def _changes(saved: schema.Recipe, asked: schema.Recipe) -> list[str]:
    before, now = (_deciding(recipe) for recipe in (saved, asked))
    if saved.schedule.name in _OPEN_ENDED and asked.duration[1] == saved.duration[1]:
        longer = asked.duration[0] >= saved.duration[0]
        before["max_duration"] = now["max_duration"] if longer else before["max_duration"]
    return differences(before, now)


def _deciding(recipe: schema.Recipe) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    for section in _FREE_SECTIONS:
        values.pop(section)
    for key in _FREE_KEYS:
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place[part]
        place.pop(last)
    return values
