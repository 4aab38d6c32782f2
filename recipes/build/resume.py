"""Where a run starts: anew, or from the last checkpoint of a stopped run of the same name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.utils import dist

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.ffcv_loaders.pipeline.planned import differences
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose, to_yaml
from mixsize.recipes.config.regimes import ProgressiveRegime
from mixsize.recipes.records.run_folder import (
    BATCH_LOGS,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    DATA_FILE,
    RECIPE_FILE,
    RECORD_FILE,
    STATISTICS_FILE,
    WANDB_ID_FILE,
    WEIGHTS_FILE,
    latest_checkpoint,
    saved_checkpoints,
)
from mixsize.recipes.records.run_record import RunRecord, read_record
from mixsize.system.files import remove_partial, write_text

#: Keys that may change while a run is stopped, because neither batches nor weights depend on them.
_FREE_SECTIONS = ("output", "loader", "evaluation", "execution")
_FREE_KEYS = ("name", "device", "progress_bar", "data.train", "data.eval", "data.train_images", "data.classes")
#: Schedules that do not depend on the length of the run, so that it may be extended.
_OPEN_ENDED = ("multistep", "constant")


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        recipe: with ``regime.batch_multiple`` filled in.
        checkpoint: the training state to continue from; None for a new run.
    """

    recipe: schema.Recipe
    checkpoint: Path | None


def find_start(recipe: schema.Recipe, folder: Path, ranks: int) -> Start:
    """Look for a stopped run.

    Args:
        recipe: the recipe of this start.
        folder: the run's.
        ranks: number of processes of this start.

    Raises:
        ValueError: the folder holds checkpoints of another recipe; the message names the keys that differ.
    """
    checkpoint = None if recipe.output.restart else latest_checkpoint(folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        return Start(_with_batch_multiple(recipe, ranks), None)
    saved = compose([str(folder / RECIPE_FILE)])
    # By default batches stay multiples of the ranks that the run began with.
    recipe = _with_batch_multiple(recipe, saved.regime.batch_multiple or ranks)
    changed = _changes(saved, recipe)
    if changed:
        raise ValueError(
            f"{folder} holds a stopped run of another recipe: {'; '.join(changed)}. Give another name, or "
            "output.restart=true to remove its checkpoints and start anew"
        )
    return Start(recipe, checkpoint)


def find_shared_start(recipe: schema.Recipe, folder: Path) -> Start:
    """Call :func:`find_start` on every rank and check that all find the same checkpoint.

    Raises:
        ValueError: see :func:`find_start`, or the ranks find different checkpoints.
    """
    start = find_start(recipe, folder, dist.get_world_size())
    found = dist.all_gather_object(start.checkpoint.name if start.checkpoint else None)
    if len(set(found)) > 1:
        raise ValueError(
            f"output.folder: the ranks find different checkpoints in {folder} ({', '.join(map(str, found))}); to "
            "resume, it must be on a file system that all of them share"
        )
    return start


def check_ranks(start: Start, regime: Regime | Progression, ranks: int) -> None:
    """Refuse to resume on ranks that do not divide the batches of the stopped run.

    Raises:
        ValueError: the message names the first such batch, and numbers of ranks that divide all of them.
    """
    batches = [choice.batch_size for part in regime.regimes for choice in part.choices]
    uneven = [batch for batch in batches if batch % ranks]
    if start.checkpoint is not None and uneven:
        common = math.gcd(*batches)
        fitting = ", ".join(str(number) for number in range(1, min(common, 64) + 1) if common % number == 0)
        raise ValueError(
            f"the stopped run has batches of {uneven[0]} images, which {ranks} ranks cannot share evenly; go on with "
            f"{fitting} ranks, or give another name"
        )


def check_data(start: Start, folder: Path, loader: MixSizeLoader) -> None:
    """Refuse to resume with other training images.

    Raises:
        ValueError: the message names what differs.
    """
    if start.checkpoint is None:
        return
    saved = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    changed = differences(saved, loader.dataset.identity())
    if changed:
        raise ValueError(f"{folder} holds a stopped run on other data: {'; '.join(changed)}")


def prepare_folder(start: Start, folder: Path, loader: MixSizeLoader) -> None:
    """Write the recipe and the identity of the data; remove the files of an earlier run unless it is resumed."""
    dist.barrier()  # All ranks have accepted the recipe.
    if dist.get_global_rank() == 0:
        if start.checkpoint is None:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        remove_partial(folder / CHECKPOINT_FOLDER)
        write_text(folder / RECIPE_FILE, to_yaml(start.recipe))
        write_text(folder / DATA_FILE, json.dumps(loader.dataset.identity(), indent=1) + "\n")
    dist.barrier()


def finished_record(recipe: schema.Recipe, folder: Path) -> RunRecord | None:
    """The record of a run that has already ended under this recipe, or None.

    Raises:
        ValueError: the file of the record holds something else.
    """
    file = folder / RECORD_FILE
    if recipe.output.restart or not file.exists():
        return None
    record = read_record(file)
    trained, asked = dict(record.recipe), recipe.model_dump(mode="json")
    # A recipe may leave open what a record always says.
    if asked["regime"]["batch_multiple"] is None:
        asked["regime"]["batch_multiple"] = trained["regime"].get("batch_multiple")
    for values in (asked, trained):
        for key in ("output", "execution", "progress_bar"):
            values.pop(key, None)
    return None if differences(trained, asked) else record


def _with_batch_multiple(recipe: schema.Recipe, multiple: int) -> schema.Recipe:
    if recipe.regime.batch_multiple is not None:
        return recipe
    regime = recipe.regime.model_copy(update={"batch_multiple": multiple})
    return recipe.model_copy(update={"regime": regime})


def _changes(saved: schema.Recipe, asked: schema.Recipe) -> list[str]:
    before, now = _deciding(saved), _deciding(asked)
    is_longer = asked.duration[1] == saved.duration[1] and asked.duration[0] >= saved.duration[0]
    follows = isinstance(saved.regime, ProgressiveRegime) and saved.regime.follows_duration
    if saved.schedule.name in _OPEN_ENDED and is_longer and not follows:
        before["max_duration"] = now["max_duration"]
    return differences(before, now)


def _deciding(recipe: schema.Recipe) -> dict[str, Any]:
    """The keys that batches or weights depend on."""
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


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and no others."""
    logs = folder.glob(BATCH_LOGS)
    files = [
        folder / name
        for name in (RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE, STATISTICS_FILE, DATA_FILE, RECIPE_FILE, WANDB_ID_FILE)
    ]
    for path in (*saved_checkpoints(folder / CHECKPOINT_FOLDER), *logs, *files):
        path.unlink(missing_ok=True)
