"""The callbacks and loggers of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from composer.core import Callback
from composer.loggers import LoggerDestination

from mixsize.algorithms.training.epoch_schedule import elapsed_fraction
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.build.algorithms import Algorithms
from mixsize.recipes.build.evaluators import evaluator_label
from mixsize.recipes.build.model import ACCURACY
from mixsize.recipes.callbacks.batch_log import BatchLog
from mixsize.recipes.callbacks.checkpoints import Checkpoints
from mixsize.recipes.callbacks.finite_loss import FiniteLoss
from mixsize.recipes.callbacks.gradient_norms import GradientNorms
from mixsize.recipes.callbacks.learning_curve import LearningCurve
from mixsize.recipes.callbacks.lengths import Lengths
from mixsize.recipes.callbacks.progress import EvaluationProgress, Progress
from mixsize.recipes.callbacks.shared_statistics import SharedStatistics
from mixsize.recipes.callbacks.time_budget import TimeBudget
from mixsize.recipes.callbacks.times import Times
from mixsize.recipes.callbacks.wandb_logger import LenientWandBLogger
from mixsize.recipes.config import schema
from mixsize.recipes.config.composer_arguments import make
from mixsize.recipes.records.run_folder import CHECKPOINT_FOLDER
from mixsize.recipes.records.wandb_log import run_id, settings
from mixsize.system.ranks import process_rank

#: float16's loss scale starts at 2^16 and halves at every overflow.
_MAX_OVERFLOWS = 20


@dataclass(frozen=True)
class Measurements:
    """The callbacks that the run record reads."""

    clock: TrainingClock
    times: Times
    curve: LearningCurve
    gradient_norms: GradientNorms
    lengths: Lengths


def build_measurements(
    recipe: schema.Recipe, algorithms: Algorithms, clock: TrainingClock, began: float
) -> Measurements:
    """The callbacks that measure; ``began`` is ``time.perf_counter()`` at the start of the set-up."""
    labels = {evaluator_label(size_px): size_px for size_px in recipe.evaluation.sizes}
    follows_length = isinstance(recipe.schedule, schema.Cosine | schema.OneCycle)
    return Measurements(
        clock=clock,
        times=Times(algorithms.sampling, algorithms.calibration, began),
        curve=LearningCurve(algorithms.sampling, clock, ACCURACY, labels),
        gradient_norms=GradientNorms(algorithms.sampling, algorithms.smoothing),
        lengths=Lengths(recipe.max_duration, recipe.schedule.name if follows_length else None),
    )


def build_callbacks(
    recipe: schema.Recipe, folder: Path, algorithms: Algorithms, measurements: Measurements
) -> list[Callback]:
    """All callbacks, in the order in which they act."""
    clock, output = measurements.clock, recipe.output
    length, unit = recipe.duration
    is_timed = unit == "sec"
    patience_steps = _MAX_OVERFLOWS if recipe.precision == "amp_fp16" else 1
    callbacks: list[Callback] = [clock, measurements.times, measurements.curve, measurements.gradient_norms]
    callbacks += [measurements.lengths, SharedStatistics(), FiniteLoss(algorithms.sampling, patience_steps)]
    if is_timed:
        callbacks.append(TimeBudget(length, clock))
    if recipe.progress_bar:
        elapsed = elapsed_fraction(length, clock) if is_timed else None
        bar = Progress(algorithms.sampling, ACCURACY, elapsed, algorithms.calibration)
        callbacks += [bar, EvaluationProgress()]
    if output.log_batches:
        callbacks.append(BatchLog(folder))
    if output.save_every != "never":
        callbacks.append(Checkpoints(folder / CHECKPOINT_FOLDER, output.save_every, output.keep_checkpoints))
    return callbacks + [make("callbacks", name, arguments) for name, arguments in recipe.callbacks.items()]


def build_loggers(recipe: schema.Recipe, folder: Path) -> list[LoggerDestination]:
    """The logger for Weights & Biases, if the recipe asks for it; the run's folder must exist."""
    config = recipe.output.wandb
    if config is None:
        return []
    # Rank zero alone logs.
    identity = {"id": run_id(config.group, recipe.name, folder), "resume": "allow"} if process_rank()[0] == 0 else {}
    if config.mode == "disabled":
        return []  # wandb would start threads nevertheless.
    return [
        LenientWandBLogger(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=recipe.name,
            tags=list(config.tags),
            init_kwargs={
                "mode": config.mode,
                "config": recipe.model_dump(mode="json"),
                "settings": settings(),
                **identity,
            },
        )
    ]
