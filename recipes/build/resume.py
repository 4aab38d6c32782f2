"""Where a run starts: anew, or from the last checkpoint of the run of the same name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from pydantic import ValidationError

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.ffcv_loaders.pipeline.planned import differences
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose, to_yaml
from mixsize.recipes.config.keys import without_nulls
from mixsize.recipes.config.regimes import ProgressiveRegime
from mixsize.recipes.models.weights import running_nothing
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

#: Keys that may change from one start to the next, because neither batches nor weights depend on them.
_FREE = ("name", "device", "progress_bar", "output", "loader", "evaluation", "calibration", "execution", "callbacks")
_FREE_DATA = ("train", "eval", "train_images", "classes", "eval_transform")
#: Those of them that change what is measured of the weights.
_MEASURING, _MEASURING_DATA = ("evaluation", "calibration"), ("eval", "eval_transform")
_OTHER_NAME = "another name (name=...)"


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        recipe: with ``regime.batch_multiple`` filled in.
        checkpoint: the training state to continue from; None for a new run.
        length_before: the run's ``max_duration`` at its last start; None for a new run.
    """

    recipe: schema.Recipe
    checkpoint: Path | None
    length_before: str | None = None


def find_start(recipe: schema.Recipe, folder: Path, ranks: int) -> Start:
    """Look for a run that was stopped, or that has ended and goes on.

    Args:
        recipe: the recipe of this start.
        folder: the run's.
        ranks: number of processes of this start.

    Raises:
        ValueError: the folder holds a run of another recipe, or one that cannot go on; the message names the keys that
            differ, or the reason.
    """
    checkpoint = None if recipe.output.restart else latest_checkpoint(folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        if not recipe.output.restart:
            _check_not_ended(recipe, folder)
        return Start(_with_batch_multiple(recipe, ranks), None)
    saved = compose([str(folder / RECIPE_FILE)])
    # By default batches stay multiples of the ranks that the run began with.
    recipe = _with_batch_multiple(recipe, saved.regime.batch_multiple or ranks)
    before, now = _deciding(saved.model_dump(mode="json")), _deciding(recipe.model_dump(mode="json"))
    before["max_duration"] = now["max_duration"]
    changed = differences(before, now)
    if changed:
        raise ValueError(f"{folder} holds a run of another recipe: {'; '.join(changed)}; give {_OTHER_NAME}")
    if recipe.max_duration != saved.max_duration:
        _check_length(saved, recipe, folder, checkpoint)
    return Start(recipe, checkpoint, saved.max_duration)


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
    """Refuse to resume on ranks that do not divide the batches of the run.

    Raises:
        ValueError: the message names the first such batch, and numbers of ranks that divide all of them.
    """
    batches = [choice.batch_size for part in regime.regimes for choice in part.choices]
    uneven = [batch for batch in batches if batch % ranks]
    if start.checkpoint is not None and uneven:
        common = math.gcd(*batches)
        fitting = ", ".join(str(number) for number in range(1, min(common, 64) + 1) if common % number == 0)
        raise ValueError(
            f"the run has batches of {uneven[0]} images, which {ranks} ranks cannot share evenly; go on with {fitting} "
            f"ranks, or {_OTHER_NAME}"
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
        raise ValueError(f"{folder} holds a run on other data: {'; '.join(changed)}; give {_OTHER_NAME}")


def prepare_folder(start: Start, folder: Path, loader: MixSizeLoader) -> None:
    """Write the recipe and the identity of the data; remove the files of an earlier run unless it is resumed."""
    dist.barrier()  # All ranks have accepted the recipe.
    if dist.get_global_rank() == 0:
        if start.checkpoint is None:
            removed = _clear(folder)
            if removed and start.recipe.output.restart:
                print(f"output.restart: removed from {folder}: {', '.join(removed)}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        remove_partial(folder / CHECKPOINT_FOLDER)
        # A later start with this file goes on with the run.
        output = start.recipe.output.model_copy(update={"restart": False})
        write_text(folder / RECIPE_FILE, to_yaml(start.recipe.model_copy(update={"output": output})))
        write_text(folder / DATA_FILE, json.dumps(loader.dataset.identity(), indent=1) + "\n")
    dist.barrier()


def finished_record(recipe: schema.Recipe, folder: Path) -> RunRecord | None:
    """The record of a run that has ended under this recipe, with this evaluation and calibration; else None.

    Raises:
        ValueError: the file of the record holds something else.
    """
    if recipe.output.restart:
        return None
    record = _ended(folder)
    if record is None:
        return None
    trained, asked = _filled(record.recipe), _asked_of(recipe, record)
    changed = differences(_deciding(trained), _deciding(asked)) or differences(_measuring(trained), _measuring(asked))
    return None if changed else record


def _ended(folder: Path) -> RunRecord | None:
    file = folder / RECORD_FILE
    return read_record(file) if file.exists() else None


def _filled(recipe: dict[str, Any]) -> dict[str, Any]:
    """A record's recipe with the defaults of keys that an earlier version lacked; as it is where it is none today."""
    try:
        return schema.Recipe.model_validate_json(json.dumps(without_nulls(recipe))).model_dump(mode="json")
    except ValidationError:
        return recipe


def _asked_of(recipe: schema.Recipe, record: RunRecord) -> dict[str, Any]:
    """The recipe in plain values; it may leave open what a record always says."""
    multiple = record.recipe["regime"].get("batch_multiple")
    return (_with_batch_multiple(recipe, multiple) if multiple else recipe).model_dump(mode="json")


def _check_not_ended(recipe: schema.Recipe, folder: Path) -> None:
    """Refuse to overwrite a run that has ended and left no checkpoint."""
    record = _ended(folder)
    if record is None:
        return
    before, now = _deciding(_filled(record.recipe)), _deciding(_asked_of(recipe, record))
    length, asked = before.pop("max_duration"), now.pop("max_duration")
    changed = differences(before, now)
    if changed:
        raise ValueError(f"{folder} holds a run of another recipe: {'; '.join(changed)}; give {_OTHER_NAME}")
    never = record.recipe["output"]["save_every"] == "never"
    why = "output.save_every was never" if never else f"{folder / CHECKPOINT_FOLDER} holds none"
    if length != asked:
        raise ValueError(
            f"max_duration is {asked}, but {folder} ended after {length} and cannot go on: that takes a checkpoint, "
            f"and {why}; to train from the start, give {_OTHER_NAME}"
        )
    raise ValueError(
        f"{folder} has ended and cannot be evaluated anew here: that takes a checkpoint, and {why}; "
        f"mixsize eval {folder} evaluates its weights"
    )


def _check_length(saved: schema.Recipe, asked: schema.Recipe, folder: Path, checkpoint: Path) -> None:
    """Refuse a length that the run has passed, or that would have made its first epochs others."""
    if isinstance(saved.regime, ProgressiveRegime) and saved.regime.follows_duration is not None:
        key, has = saved.regime.follows_duration
        raise ValueError(
            f"max_duration was {saved.max_duration}, is {asked.max_duration}: regime.{key} has {has}, which follow it, "
            f"so epochs that {folder} has trained would have been others; give {_OTHER_NAME}"
        )
    with running_nothing(checkpoint):
        state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["state"]
    time = state["timestamp"]["Timestamp"]
    epoch, steps = int(time["epoch"]), int(time["batch"])
    seconds = state["callbacks"]["TrainingClock"]["seconds"]
    least = {"ep": epoch + (int(time["batch_in_epoch"]) > 0), "ba": steps, "sec": seconds}
    length, unit = asked.duration
    if length < least[unit]:
        raise ValueError(
            f"max_duration is {asked.max_duration}, and {folder} is beyond it: at epoch {epoch}, step {steps}, after "
            f"{seconds:.1f} s of training; give at least {math.ceil(least[unit])}{unit}, or {_OTHER_NAME}"
        )


def _with_batch_multiple(recipe: schema.Recipe, multiple: int) -> schema.Recipe:
    if recipe.regime.batch_multiple is not None:
        return recipe
    regime = recipe.regime.model_copy(update={"batch_multiple": multiple})
    return recipe.model_copy(update={"regime": regime})


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys that batches or weights depend on, of a recipe in plain values."""
    values = {key: value for key, value in recipe.items() if key not in _FREE}
    return {**values, "data": {key: value for key, value in recipe["data"].items() if key not in _FREE_DATA}}


def _measuring(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys that accuracies depend on besides the weights, of a recipe in plain values."""
    data = {key: recipe["data"].get(key) for key in _MEASURING_DATA}
    return {**{key: recipe.get(key) for key in _MEASURING}, "data": data}


def _clear(folder: Path) -> list[str]:
    """Remove the files of an earlier run, and no others; returns their names."""
    names = (RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE, STATISTICS_FILE, DATA_FILE, RECIPE_FILE, WANDB_ID_FILE)
    files = [folder / name for name in names]
    files += [*saved_checkpoints(folder / CHECKPOINT_FOLDER), *sorted(folder.glob(BATCH_LOGS))]
    removed = [path for path in files if path.exists()]
    for path in removed:
        path.unlink()
    return [str(path.relative_to(folder)) for path in removed]
