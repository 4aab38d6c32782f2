"""From a recipe to a Trainer."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from composer import Evaluator, Trainer
from composer.core import Algorithm, Callback
from composer.loggers import LoggerDestination
from composer.utils import reproducibility

from mixsize.algorithms.averaging.model_ema import ModelEMA
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.ffcv_loaders.decode.policy import check_stored_sizes
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.recipes.build.algorithms import build_algorithms
from mixsize.recipes.build.callbacks import build_callbacks, build_loggers, build_measurements
from mixsize.recipes.build.data import (
    build_augment,
    build_loader,
    count_by_class,
    count_classes,
    open_data,
    sizes_drawn,
)
from mixsize.recipes.build.devices import (
    check_precision,
    check_trained_sizes,
    join_ranks,
    torch_device,
    trainer_precision,
)
from mixsize.recipes.build.evaluators import build_evaluators
from mixsize.recipes.build.model import build_model, set_engine
from mixsize.recipes.build.preparation import preparation_of, with_preparation
from mixsize.recipes.build.resume import Start, check_data, check_ranks, find_shared_start, prepare_folder
from mixsize.recipes.callbacks.gradient_norms import GradientNorms
from mixsize.recipes.callbacks.learning_curve import LearningCurve
from mixsize.recipes.callbacks.lengths import Lengths
from mixsize.recipes.callbacks.time_budget import NO_END
from mixsize.recipes.callbacks.times import Times
from mixsize.recipes.config import schema
from mixsize.recipes.models.hub_config import config_text
from mixsize.recipes.models.network import check_sizes, network_stride
from mixsize.recipes.models.optimizer import build_optimizer
from mixsize.recipes.models.weights import running_nothing
from mixsize.recipes.planning.regimes import build_regime, check_reached
from mixsize.recipes.records.run_folder import CONFIG_FILE, run_folder
from mixsize.system.files import write_text
from mixsize.system.ranks import process_rank


@dataclass(frozen=True)
class Run:
    """A Trainer ready to fit, with the parts that the run record reads.

    Attributes:
        class_images: number of images of each class that are evaluated on.
        calibration: None if the recipe has none.
        ema: None if the recipe has none.
        resumed: the checkpoint that training continues from; None for a new run.
    """

    recipe: schema.Recipe
    folder: Path
    resumed: Path | None
    trainer: Trainer
    loader: MixSizeLoader
    class_images: dict[str, int]
    sampling: MixSizeSampling
    calibration: BNCalibrate | None
    ema: ModelEMA | None
    clock: TrainingClock
    times: Times
    curve: LearningCurve
    gradient_norms: GradientNorms
    lengths: Lengths

    @property
    def regime(self) -> Regime | Progression:
        """The regime that the loader draws from."""
        return self.loader.regime


def build(recipe: schema.Recipe) -> Run:
    """Build the Trainer of a recipe; it continues the run of the same name.

    Raises:
        ValueError: the recipe does not fit the data, the network, the number of ranks or that run.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    if recipe.output.wandb is not None:
        import_module("wandb")  # Where it is missing, the run ends before a file changes.
    device = torch_device(recipe.device)
    check_precision(device, recipe.precision)
    join_ranks(device)
    folder = run_folder(recipe)
    start = find_shared_start(recipe, folder)
    recipe = start.recipe
    train, evaluation = open_data(recipe.data)
    reproducibility.seed_all(recipe.seed)  # For the weights; the Trainer seeds each rank differently.
    num_classes = count_classes(recipe, train, evaluation)
    model = build_model(recipe, num_classes, device)
    prepared = with_preparation(recipe, model.module, train)
    check_stored_sizes(build_augment(prepared.data.augment), train)
    regime = _build_regime(start, model, device)
    check_reached(recipe, regime, train.num_samples)
    loader = build_loader(prepared, train, regime, device)
    check_data(start, folder, loader)
    evaluators = build_evaluators(prepared, evaluation, network_stride(model.module), device)
    optimizer = build_optimizer(recipe.optimizer, model.module, regime)
    clock = TrainingClock(agree=recipe.duration[1] == "sec")
    algorithms = build_algorithms(prepared, model, regime, train, num_classes, clock, device)
    measurements = build_measurements(recipe, algorithms, clock, began)
    callbacks = build_callbacks(recipe, folder, algorithms, measurements)
    # Files of an earlier run change only now, when nothing can be refused any more.
    prepare_folder(start, folder, loader)
    if process_rank()[0] == 0:
        classes = train.info.classes if train.info else None
        write_text(folder / CONFIG_FILE, config_text(model.module, preparation_of(prepared), classes))
    trainer = _build_trainer(
        start,
        device,
        model=model,
        loader=loader,
        evaluators=evaluators,
        optimizer=optimizer,
        algorithms=algorithms.in_order(),
        callbacks=callbacks,
        loggers=build_loggers(recipe, folder),
    )
    return Run(
        recipe=recipe,
        folder=folder,
        resumed=start.checkpoint,
        trainer=trainer,
        loader=loader,
        class_images=count_by_class(evaluation, num_classes),
        sampling=algorithms.sampling,
        calibration=algorithms.calibration,
        ema=algorithms.ema,
        clock=clock,
        times=measurements.times,
        curve=measurements.curve,
        gradient_norms=measurements.gradient_norms,
        lengths=measurements.lengths,
    )


def _build_regime(start: Start, model: EngineClassifier, device: torch.device) -> Regime | Progression:
    """The regime; ranks, engine and network are checked against its batches and sizes."""
    recipe, stride_px = start.recipe, network_stride(model.module)
    regime = build_regime(recipe, stride_px, process_rank()[1])
    check_trained_sizes(device, recipe.precision, sizes_drawn(regime), stride_px)
    check_ranks(start, regime, process_rank()[1])
    set_engine(recipe, model, regime, device)
    check_sizes(model.module, recipe.model.name, [*sizes_drawn(regime), *recipe.evaluation.sizes])
    return regime


def _build_trainer(
    start: Start,
    device: torch.device,
    *,
    model: EngineClassifier,
    loader: MixSizeLoader,
    evaluators: list[Evaluator],
    optimizer: torch.optim.Optimizer,
    algorithms: list[Algorithm],
    callbacks: list[Callback],
    loggers: list[LoggerDestination],
) -> Trainer:
    recipe = start.recipe
    with running_nothing(start.checkpoint), warnings.catch_warnings():
        # Of parts that the run began without, such as a calibration.
        warnings.filterwarnings("ignore", message=".* is not in the state_dict")
        return Trainer(
            model=model,
            train_dataloader=loader.data_spec(),
            eval_dataloader=evaluators,
            eval_interval=f"{recipe.evaluation.every_epochs}ep",
            optimizers=optimizer,
            algorithms=algorithms,
            max_duration=NO_END if recipe.duration[1] == "sec" else recipe.max_duration,
            seed=recipe.seed,
            precision=trainer_precision(device, recipe.precision),
            device={"auto": None, "cpu": "cpu", "gpu": "gpu"}[recipe.device],
            device_train_microbatch_size=recipe.microbatch_images,
            run_name=recipe.name,
            loggers=loggers,
            callbacks=callbacks,
            progress_bar=False,
            auto_log_hparams=False,
            load_path=None if start.checkpoint is None else str(start.checkpoint),
            # StepSeed seeds every step, on any number of ranks.
            load_ignore_keys=["rng"],
        )
