"""Train a recipe, write its record and print it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from composer.core import State
from composer.utils import dist
from rich.console import Console
from rich.table import Table

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.execution.composer_model import network_of
from mixsize.display.console import plain_console
from mixsize.recipes.build.resume import finished_record
from mixsize.recipes.build.trainer import Run, build
from mixsize.recipes.callbacks.checkpoints import check_finite
from mixsize.recipes.callbacks.out_of_memory import naming_shape_that_does_not_fit
from mixsize.recipes.callbacks.time_budget import TimeBudget
from mixsize.recipes.callbacks.wandb_logger import LenientWandBLogger
from mixsize.recipes.commands.recording import LastEvaluation, last_evaluation, make_record
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.models.weights import save_weights
from mixsize.recipes.records.environment import source_version
from mixsize.recipes.records.run_folder import (
    CHECKPOINT_FOLDER,
    RECORD_FILE,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    epoch_and_step,
    latest_checkpoint,
    run_folder,
)
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord, Seconds, read_record
from mixsize.system.files import write_text
from mixsize.system.ranks import share_cores


def prepare(recipe: Recipe, arguments: Sequence[str] = ()) -> Callable[[], int]:
    """Build the run; the function returned trains it.

    Args:
        recipe: the recipe.
        arguments: of ``mixsize train``, for the command that goes on after a stop.
    """
    record = finished_record(recipe, run_folder(recipe))
    if record is not None:
        return lambda: _show_finished(record, run_folder(recipe))
    share_cores()
    run = build(recipe)

    def train() -> int:
        try:
            fit(run)
        except (KeyboardInterrupt, SystemExit) as stop:  # Composer makes SIGINT a SystemExit, as mixsize does SIGTERM.
            if dist.get_global_rank() == 0:
                print(_how_to_go_on(run, arguments), file=sys.stderr)
            if isinstance(stop, SystemExit):
                raise
            return 128 + signal.SIGINT
        return 0

    return train


def fit(run: Run) -> RunRecord:
    """Train or resume; write the weights and the record into the run's folder; print the record.

    Returns:
        The record, the same on every rank except for times.

    Raises:
        FloatingPointError: the loss or the weights are not finite; these weights are not written.
        MemoryError: a step needs more memory than there is; the message names its shape.
        OSError: a file cannot be written; the file it would have replaced stays.
    """
    try:
        with naming_shape_that_does_not_fit(run.trainer.state, run.sampling):
            record = _train_and_record(run)
    except BaseException:
        # Not the Trainer's close(), which waits for the other ranks, and they may be waiting for this one.
        run.trainer.engine.close()
        raise
    run.trainer.close()
    if dist.get_global_rank() == 0:
        print_record(record, plain_console())
        print(f"record: {run.folder / RECORD_FILE}")
    return record


def _train_and_record(run: Run) -> RunRecord:
    source = source_version()
    _train(run)
    calibrated = None if run.calibration is None else _evaluate_without(run.calibration, run)
    record = make_record(run, source, calibrated)
    network = network_of(run.trainer.state)
    with nullcontext() if run.ema is None else run.ema.in_place(run.trainer.state):
        check_finite(network, run.folder / WEIGHTS_FILE)
        if dist.get_global_rank() == 0:
            save_weights(network, run.folder / WEIGHTS_FILE)
    if dist.get_global_rank() == 0:
        _save_statistics(run)
        write_text(run.folder / RECORD_FILE, record.model_dump_json(indent=1) + "\n")
        for destination in run.trainer.logger.destinations:
            if isinstance(destination, LenientWandBLogger):
                destination.log_record(record)
    return record


def _train(run: Run) -> None:
    state = run.trainer.state
    has_ended = _has_ended(state)
    if run.resumed is not None and dist.get_global_rank() == 0:
        now, then = state.timestamp, "; no step is left, it is evaluated" if has_ended else ""
        print(f"going on from {run.resumed}: epoch {int(now.epoch)}, step {int(now.batch)}{then}", flush=True)
    if has_ended:
        # The run was stopped between its last checkpoint and its record, or is evaluated with other settings.
        run.times.end_set_up()
        run.trainer.eval()
        run.curve.note(state)
    else:
        _restore_curve(run)
        run.trainer.fit()


def _restore_curve(run: Run) -> None:
    """Give a run that goes on after its end the evaluation there, which its checkpoint lacks or has as calibrated."""
    file = run.folder / RECORD_FILE
    if run.resumed is None or not file.exists():
        return
    ended = read_record(file)
    if ended.steps == int(run.trainer.state.timestamp.batch):
        run.curve.continue_from(ended.curve)


def _has_ended(state: State) -> bool:
    assert state.max_duration is not None
    is_out_of_time = any(callback.is_over() for callback in state.callbacks if isinstance(callback, TimeBudget))
    return is_out_of_time or state.timestamp >= state.max_duration


def _evaluate_without(calibration: BNCalibrate, run: Run) -> LastEvaluation:
    """Evaluate again with the network's own batch-norm statistics; returns the calibrated evaluation before it."""
    calibrated = last_evaluation(run)
    state = run.trainer.state
    algorithms = list(state.algorithms)  # A copy: assigning to the property changes the list that it returned.
    state.algorithms = [algorithm for algorithm in algorithms if algorithm is not calibration]
    run.trainer.eval()
    state.algorithms = algorithms
    assert run.recipe.calibration is not None
    if run.recipe.calibration.when == "last":
        # All other points of the curve have the accuracy of the network's own statistics.
        run.curve.replace_last_accuracy(last_evaluation(run).accuracy)
    return calibrated


def _save_statistics(run: Run) -> None:
    """Write the batch-norm statistics of these weights; those of the weights before go."""
    file = run.folder / STATISTICS_FILE
    if run.calibration is None:
        file.unlink(missing_ok=True)
        return
    # A run that went on may have calibrated other sizes, for earlier weights.
    sizes = run.calibration.bank.state_dict()["sizes"]
    bank = StatisticsBank()
    bank.load_state_dict({"sizes": {key: sizes[key] for key in map(str, run.recipe.evaluation.sizes) if key in sizes}})
    bank.save(file)


def _how_to_go_on(run: Run, arguments: Sequence[str]) -> str:
    """What is saved of a run that was stopped, and the command that goes on with it."""
    checkpoint = latest_checkpoint(run.folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        saved = f"nothing is saved (output.save_every is {run.recipe.output.save_every}), so it begins anew"
    else:
        epoch, step = epoch_and_step(checkpoint)
        saved = f"{checkpoint} is saved: epoch {epoch}, step {step}"
    kept = ["output.restart=false"] if run.recipe.output.restart else []
    launcher = " through the launcher" if dist.get_world_size() > 1 else ""
    return f"stopped; {saved}. To go on{launcher}: {shlex.join(['mixsize', 'train', *arguments, *kept])}"


def _show_finished(record: RunRecord, folder: Path) -> int:
    if int(os.environ.get("RANK", 0)) == 0:
        print_record(record, plain_console())
        print(f"{folder} ended before; this is its record. A longer max_duration goes on, another name begins anew")
    return 0


def print_record(record: RunRecord, console: Console) -> None:
    """Print what was drawn, the accuracy at each size, and where the time went."""
    drawn = Table(title=f"{record.name}: what was drawn in {record.steps:,} steps")
    for column in ("size px", "batch", "duplicates", "steps", "images seen"):
        drawn.add_column(column, justify="right")
    for row in record.shapes:
        seen = row.steps * row.batch_size * row.duplicates
        cells = (row.size_px, row.batch_size, row.duplicates, f"{row.steps:,}", f"{seen:,}")
        drawn.add_row(*map(str, cells))
    console.print(drawn)
    if record.environment.ranks > 1:
        console.print(f"{record.environment.ranks} ranks trained on the same shapes in the same order")
    of = ", averaged weights" if record.weights == "averaged" else ""
    accuracy = Table(title=f"top-1 % and loss after {record.seconds.training:.1f} s of training{of}")
    calibrated = record.calibrated_accuracy
    kinds = (OWN, CALIBRATED) if calibrated else (OWN,)
    for column in ("size px", *kinds, f"loss, {OWN}"):
        accuracy.add_column(column, justify="right")
    for size, value in record.accuracy.items():
        loss = record.loss[size]
        cells = [f"{100 * value:.2f}", *([f"{100 * calibrated[size]:.2f}"] if calibrated else [])]
        accuracy.add_row(size, *cells, "not finite" if loss is None else f"{loss:.4f}")
    console.print(accuracy)
    console.print(time_line(record.seconds), highlight=False, soft_wrap=True)


def time_line(seconds: Seconds) -> str:
    """The time of a run by activity; the record of a run has all of them but the checkpoints, which are the rest."""
    spent = {name: getattr(seconds, name) or 0.0 for name in ("training", "set_up", "evaluation", "calibration")}
    rest = max(0.0, (seconds.fit or 0.0) - spent["training"] - spent["evaluation"] - spent["calibration"])
    return (
        f"time: {spent['training']:.1f} s of training; besides it {spent['set_up']:.1f} s of set-up, "
        f"{spent['evaluation']:.1f} s of evaluation, {spent['calibration']:.1f} s of calibration, "
        f"{rest:.1f} s of checkpoints and the rest"
    )
